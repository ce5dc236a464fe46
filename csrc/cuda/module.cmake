# The two CUDA modules, of the same sources: _cuda for GPUs, by nvcc, and _cuda_emulated, by the C++ compiler, in which
# the emulator of csrc/cuda_emulation runs the kernels on CPU tensors and checks every access (for tests: it is slow).
file(GLOB KERNELS CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB BINDINGS CONFIGURE_DEPENDS csrc/bindings/cuda/*.cpp)

if(SPOS_MODULE STREQUAL "_cuda")
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    # Machine code for these, and the newest's PTX for what comes later.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  endif()
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # finds the driver when it is first used: importing needs none
  enable_language(CUDA)
  add_library(${SPOS_MODULE} MODULE ${KERNELS} ${BINDINGS} csrc/bindings/tensor.cpp)
  target_compile_definitions(${SPOS_MODULE} PRIVATE SPOS_CUDA_DEVICE)
  target_compile_options(${SPOS_MODULE} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
else()
  # The architecture whose code paths the kernels take: sm_80 has them all, those of s4 and b1 products too.
  set(SPOS_EMULATED_ARCH 800 CACHE STRING "__CUDA_ARCH__ of the emulated kernels")
  file(GLOB EMULATOR CONFIGURE_DEPENDS csrc/cuda_emulation/*.cpp)
  # The emulator itself answers the calls that -fsanitize=thread puts in front of every access: nothing is linked for it.
  set_source_files_properties(${KERNELS} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-x;c++;-O2;-g;-fsanitize=thread;-fno-tree-sra;-D__CUDA_ARCH__=${SPOS_EMULATED_ARCH}")
  set_source_files_properties(${EMULATOR} PROPERTIES COMPILE_OPTIONS "-g")
  add_library(${SPOS_MODULE} MODULE ${KERNELS} ${EMULATOR} ${BINDINGS} csrc/bindings/tensor.cpp)
  target_compile_definitions(${SPOS_MODULE} PRIVATE SPOS_CUDA_EMULATED)
endif()

target_include_directories(${SPOS_MODULE} PRIVATE csrc)
target_include_directories(${SPOS_MODULE} SYSTEM PRIVATE ${PYTHON_INCLUDE_DIR} ${PYBIND11_INCLUDE_DIR})
target_compile_options(${SPOS_MODULE} PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unknown-pragmas>)
set_target_properties(${SPOS_MODULE} PROPERTIES PREFIX "" SUFFIX "${EXTENSION_SUFFIX}"
  LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
