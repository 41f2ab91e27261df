# Where things lie. The build folder is laid out as the installed tree is, so that the library finds its host modules
# (`arcflow/` beside it) and the embedded bundle (`../share/arcflow/bundles`) in the same way in both.

set(ARCFLOW_HOSTS_DIR arcflow)                 # from the library's folder
set(ARCFLOW_DATA_DIR ${CMAKE_INSTALL_DATADIR}/arcflow)

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/archives)

# From the installed library's folder to the bundles: "../share/arcflow/bundles", or what an unusual layout asks for.
file(RELATIVE_PATH ARCFLOW_BUNDLES_FROM_LIBRARY ${CMAKE_INSTALL_FULL_LIBDIR}
     ${CMAKE_INSTALL_FULL_DATADIR}/arcflow/bundles)

if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/engines/bundles)
  get_filename_component(bundles ${PROJECT_BINARY_DIR}/lib/${ARCFLOW_BUNDLES_FROM_LIBRARY} ABSOLUTE)
  get_filename_component(parent ${bundles} DIRECTORY)
  file(MAKE_DIRECTORY ${parent})
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/engines/bundles ${bundles} SYMBOLIC)
endif()

# Programs and modules find the library beside them, wherever the tree is put.
file(RELATIVE_PATH library_from_bin ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
set(ARCFLOW_PROGRAM_RPATH "$ORIGIN/${library_from_bin}")
set(CMAKE_INSTALL_RPATH ${ARCFLOW_PROGRAM_RPATH})
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
