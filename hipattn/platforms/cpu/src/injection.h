// Every entry point counts its calls here, and can be told to fail: "hipMalloc:3,hipFree:1" lets the third call of
// hipMalloc from now and the next of hipFree fail once.
#pragma once

#include "../../abi/base.h"

struct Counter {
    const char* name;
    long calls;
    Counter* next;
};

// Counts the call; true when it has to fail. A counter is static storage of the entry point.
bool injection_enter(Counter*);
// The same for callers that know a name only.
bool injection_enter(const char* name);

void injection_set(const char* spec);
long injection_calls(const char* name);
