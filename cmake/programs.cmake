# The Python package: its native module, and the programs, which it starts from there.
include_guard()

# What an installed Skate consists of; `make build` and the wheel build this, and no tests.
add_custom_target(runtime)
set(package ${PROJECT_SOURCE_DIR}/python/skate)

if(TARGET _skate)
  add_dependencies(runtime _skate)
  # Hidden visibility alone leaves what the compiler instantiates of the standard library.
  target_link_options(_skate PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/module.map)
  if(SKATE_INPLACE)
    set_target_properties(_skate PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${package})
  endif()
  install(TARGETS _skate LIBRARY DESTINATION skate)
endif()

foreach(program skated skate)
  if(TARGET ${program})
    add_dependencies(runtime ${program})
    if(SKATE_INPLACE)
      set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${package}/bin)
    else()
      set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
    endif()
    install(TARGETS ${program} RUNTIME DESTINATION skate/bin)
    if(program STREQUAL "skate" AND SKBUILD_SCRIPTS_DIR)
      install(TARGETS ${program} RUNTIME DESTINATION ${SKBUILD_SCRIPTS_DIR})
    endif()
  endif()
endforeach()
