// Stands in for libcuda and libnvrtc: what hipattn asks of them before it uses them, as the environment says.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

static int number(const char* name) {
    const char* text = getenv(name);
    return text ? atoi(text) : 0;
}

EXPORT int cuInit(unsigned) { return number("FAKE_INIT"); }

EXPORT int cuGetErrorString(int status, const char** sentence) {
    *sentence = status == 803 ? "system has unsupported display driver / cuda driver combination" : nullptr;
    return *sentence ? 0 : 1;
}

EXPORT int cuDeviceGetCount(int* count) { return *count = number("FAKE_DEVICES"), 0; }

EXPORT int cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "NVIDIA Fake"), 0; }

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = number("FAKE_CAPABILITY");
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
    return 0;
}

EXPORT int cuDriverGetVersion(int* version) { return *version = number("FAKE_DRIVER"), 0; }

EXPORT int nvrtcVersion(int* major, int* minor) {
    int version = number("FAKE_NVRTC");
    *major = version / 1000, *minor = version % 1000 / 10;
    return 0;
}

EXPORT int nvrtcGetNumSupportedArchs(int* count) { return *count = 3, 0; }

EXPORT int nvrtcGetSupportedArchs(int* archs) {
    const int known[] = {75, 80, 90};
    memcpy(archs, known, sizeof known);
    return 0;
}
