// Cached and direct loads.
#pragma once

template <class T> SIM_FN T __ldg(const T* p) { return *p; }
template <class T> SIM_FN T __ldcg(const T* p) { return *p; }
template <class T> SIM_FN T __ldca(const T* p) { return *p; }
template <class T> SIM_FN T __ldcs(const T* p) { return *p; }
