// Division of numbers below 2^31 by one that the host knows: a product and a shift, which hipattn/kernels/division.py
// finds, where the machine would take some twenty instructions.
#pragma once

struct Divisor {
    unsigned number, reciprocal;
    int shift;

    __device__ unsigned divide(unsigned n) const { return static_cast<unsigned long long>(n) * reciprocal >> shift; }
};
