// Accelerators: resources whose single instances matter, since a process sees them through a variable of its
// environment. Names of resources and variables are those of Ray and of the makers' libraries.
#pragma once

namespace skate::wire {

struct Accelerator {
  const char* resource;
  const char* variable;    ///< the instances that a process may use, separated by commas
  const char* left_alone;  ///< "1" or "true" in a process: it sets `variable` itself
};

inline constexpr Accelerator kAccelerators[] = {
    {"GPU", "CUDA_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"},
    {"TPU", "TPU_VISIBLE_CHIPS", "RAY_EXPERIMENTAL_NOSET_TPU_VISIBLE_CHIPS"},
    {"neuron_cores", "NEURON_RT_VISIBLE_CORES", "RAY_EXPERIMENTAL_NOSET_NEURON_RT_VISIBLE_CORES"},
    {"HPU", "HABANA_VISIBLE_MODULES", "RAY_EXPERIMENTAL_NOSET_HABANA_VISIBLE_MODULES"},
    {"NPU", "ASCEND_RT_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"},
    {"RBLN", "RBLN_DEVICES", "RAY_EXPERIMENTAL_NOSET_RBLN_RT_VISIBLE_DEVICES"},
    {"FURIOSA", "FURIOSA_DEVICES", "RAY_EXPERIMENTAL_NOSET_FURIOSA_DEVICES"},
    {"MBLT", "QBRUNTIME_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_MBLT_RT_VISIBLE_DEVICES"},
    {"TTNPU", "TT_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_TENSTORRENT_VISIBLE_DEVICES"},
};

/// AMD's GPUs are GPUs as well: their driver's libraries read this one.
inline constexpr Accelerator kAmdGpu{"GPU", "HIP_VISIBLE_DEVICES",
                                     "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES"};
inline constexpr const char* kAmdDevice = "/dev/kfd";  ///< there where AMD's driver is

}  // namespace skate::wire
