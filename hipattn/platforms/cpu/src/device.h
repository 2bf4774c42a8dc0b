// The simulated devices: one for each architecture named in HIPATTN_CPU_ARCH.
#pragma once

#include "../../abi/base.h"
#include "../../abi/hip_abi.h"

struct Stream;

struct Arch {
    const char* name;      // "gfx942"
    const char* features;  // what gcnArchName adds: ":sramecc+:xnack-"
    const char* chip;      // a product with it
    int wave_size;
    unsigned lds_bytes;  // per workgroup
    int compute_units;
    int max_threads_per_cu;
    int l2_bytes;
    int clock_khz, memory_clock_khz, memory_bus_bits;
};

struct Device {
    int index;
    const Arch* arch;
    size_t memory_bytes, used_bytes;  // used_bytes: under the allocation table's lock
    Stream* null_stream;
    // The first fault: every later call returns it, as after a real one. Cleared only by sim_control_clear_fault.
    hipError_t fault;
    const char* fault_message;
};

int device_count();
Device* device_at(int index);  // null when there is none
Device* device_current();      // of the calling thread; null when there are none
bool device_select(int index);

// Why there are no devices, or null.
const char* device_problem();

// Marks the device broken, unless it is already.
__attribute__((format(printf, 3, 4))) void device_fault(Device*, hipError_t, const char* format, ...);
void device_clear_fault(Device*);

void device_properties(const Device*, hipDeviceProp_t*);
bool device_attribute(const Device*, hipDeviceAttribute_t, int* value);
