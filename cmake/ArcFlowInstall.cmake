# cmake --install: the library with its host modules, headers, programs, the embedded bundle, and packages for CMake
# and pkg-config. The tree may be moved: nothing in it names the place it was installed to.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ArcFlow)
set(hosts_dir ${CMAKE_INSTALL_LIBDIR}/${ARCFLOW_HOSTS_DIR})
set(bundles_dir ${ARCFLOW_DATA_DIR}/bundles)

if(TARGET arcflow_runtime)
  set_target_properties(arcflow_runtime PROPERTIES INSTALL_RPATH "$ORIGIN")
  if(SKBUILD)  # a wheel holds no links: its library has one plain name
    set_property(TARGET arcflow_runtime PROPERTY VERSION)
    set_property(TARGET arcflow_runtime PROPERTY SOVERSION)
  endif()
  install(TARGETS arcflow_runtime EXPORT ArcFlowTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT ArcFlowTargets NAMESPACE ArcFlow:: DESTINATION ${package_dir})
  configure_package_config_file(cmake/ArcFlowConfig.cmake.in ${PROJECT_BINARY_DIR}/ArcFlowConfig.cmake
                                INSTALL_DESTINATION ${package_dir} PATH_VARS bundles_dir hosts_dir)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/ArcFlowConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  configure_file(cmake/arcflow.pc.in ${PROJECT_BINARY_DIR}/arcflow.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/ArcFlowConfig.cmake ${PROJECT_BINARY_DIR}/ArcFlowConfigVersion.cmake
          DESTINATION ${package_dir})
  install(FILES ${PROJECT_BINARY_DIR}/arcflow.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
install(DIRECTORY runtime/native/include/arcflow DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h*")

foreach(host arcflow_host_ort arcflow_host_tensorrt)
  if(TARGET ${host})
    set_target_properties(${host} PROPERTIES INSTALL_RPATH "")
    install(TARGETS ${host} LIBRARY DESTINATION ${hosts_dir})
  endif()
endforeach()
foreach(program arcflow-cli arcflow-serve)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()

install(DIRECTORY engines/bundles/ DESTINATION ${bundles_dir})
install(DIRECTORY examples/ DESTINATION ${ARCFLOW_DATA_DIR}/examples
        FILES_MATCHING PATTERN "*.c" PATTERN "*.[ch]pp" PATTERN CMakeLists.txt)
install(FILES LICENSE NOTICE runtime/native/THIRD-PARTY.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
