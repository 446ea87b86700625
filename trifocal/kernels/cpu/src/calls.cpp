// Makes calls that were kept, one after the other.
#include "common.h"

namespace tri {

struct Call {
    void (*kernel)(const void*);
    const void* args;
};

}  // namespace tri

SIZE(call, tri::Call)

EXPORT void tri_replay(const tri::Call* calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) calls[i].kernel(calls[i].args);
}
