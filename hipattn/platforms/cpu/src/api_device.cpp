// HIP's entry points for devices.
#include "api.h"

static hipError_t version(int* out) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = 70253211;  // HIP 7.2
    return hipSuccess;
}

EXPORT hipError_t hipDriverGetVersion(int* out) {
    ENTER(hipDriverGetVersion);
    return version(out);
}

EXPORT hipError_t hipRuntimeGetVersion(int* out) {
    ENTER(hipRuntimeGetVersion);
    return version(out);
}

EXPORT hipError_t hipGetDeviceCount(int* count) {
    REQUIRE(count, hipErrorInvalidValue);
    *count = 0;
    ENTER(hipGetDeviceCount);
    *count = device_count();
    return hipSuccess;
}

EXPORT hipError_t hipSetDevice(int index) {
    ENTER(hipSetDevice);
    return leave(device_select(index) ? hipSuccess : hipErrorInvalidDevice);
}

EXPORT hipError_t hipGetDevice(int* index) {
    ENTER(hipGetDevice);
    REQUIRE(index, hipErrorInvalidValue);
    *index = device_current()->index;
    return hipSuccess;
}

EXPORT hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_t* properties, int index) {
    ENTER(hipGetDevicePropertiesR0600);
    REQUIRE(properties, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    device_properties(device_at(index), properties);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int index) {
    ENTER(hipDeviceGetAttribute);
    REQUIRE(value, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    return leave(device_attribute(device_at(index), attribute, value) ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipDeviceSynchronize() {
    ENTER_WAIT(hipDeviceSynchronize);
    Device* device = device_current();
    device_wait(device);
    return leave(fault_of(device) ? fault_of(device) : late);
}
