# Puts files into the program: cmake -D FOLDER=<this folder> -D OUT=<file.cpp> -P embed.cmake
# {{NAME}} in index.html stands for the file of that name. All is done in hexadecimal digits: CMake's strings would take
# brackets and semicolons for lists.
cmake_minimum_required(VERSION 3.20)

file(READ ${FOLDER}/index.html page HEX)
file(GLOB parts RELATIVE ${FOLDER} ${FOLDER}/*.css ${FOLDER}/*.js)
foreach(part ${parts})
  file(READ ${FOLDER}/${part} bytes HEX)
  string(HEX "{{${part}}}\n" mark)
  string(FIND ${page} ${mark} found)
  if(found EQUAL -1)
    message(FATAL_ERROR "index.html has no line {{${part}}}")
  endif()
  string(REPLACE ${mark} ${bytes} page ${page})
endforeach()
file(READ ${FOLDER}/openapi.json openapi HEX)

set(source "// Made by embed.cmake.\n#include \"server/page/embedded.hpp\"\n\nnamespace arcflow::serve::embedded {\n")
foreach(name page openapi)
  string(LENGTH ${${name}} digits)
  math(EXPR size "${digits} / 2")
  string(REGEX REPLACE "(..)" "0x\\1," bytes ${${name}})
  string(APPEND source "static const unsigned char ${name}_bytes[] = {${bytes}};\n"
                       "const std::string_view ${name}{reinterpret_cast<const char*>(${name}_bytes), ${size}};\n")
endforeach()
file(WRITE ${OUT} "${source}}  // namespace arcflow::serve::embedded\n")
