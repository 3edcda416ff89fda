# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(
  TARGETS vggload
  EXPORT vggloadTargets
  FILE_SET HEADERS)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/vggload)
install(
  EXPORT vggloadTargets
  NAMESPACE vggload::
  DESTINATION ${package_dir})
foreach(component IN LISTS components)
  install(TARGETS vggload_${component} EXPORT vggload_${component}Targets)
  install(
    EXPORT vggload_${component}Targets
    NAMESPACE vggload::
    DESTINATION ${package_dir})
endforeach()
configure_package_config_file(cmake/vggloadConfig.cmake.in vggloadConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
# Until 1.0 a new minor version may break.
write_basic_package_version_file(
  vggloadConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vggloadConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/vggloadConfigVersion.cmake DESTINATION ${package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/vggload)
