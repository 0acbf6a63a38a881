# Modules that only the Python tests import; pyproject.toml puts the release build's on their path.
include_guard()

if(SKATE_PYTHON AND SKATE_TESTS)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/bindings/codec*.cc)
  find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
  Python_add_library(codec_test_module MODULE WITH_SOABI ${sources})
  target_include_directories(codec_test_module PRIVATE ${PROJECT_SOURCE_DIR}/python)
  target_link_libraries(codec_test_module PRIVATE skate_base skate_wire)
  set_target_properties(codec_test_module PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/python_tests)
endif()
