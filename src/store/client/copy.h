// copy_in: the copy of a put. As memcpy, and for large sizes faster where the processor allows: stores
// that bypass the caches, since the copied object is larger than they are.
#pragma once

#include <cstddef>

namespace skate::store {

void copy_in(void* destination, const void* source, size_t bytes);

}  // namespace skate::store
