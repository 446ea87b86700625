// The activation of gated MLPs.
#pragma once

#include "common.h"

namespace tri {

inline vf as(const bf16*, vf x) { return rounded(x); }  // what is left of x when it is stored and read again
inline vf as(const float*, vf x) { return x; }

// silu(gate) * value, rounded where torch's operators would: after silu; whoever stores it rounds the product.
template <class T>
inline vf silu_and_mul(const T* type, vf gate, vf value) {
    return as(type, gate / (1.0f + exp(-gate))) * value;
}

}  // namespace tri
