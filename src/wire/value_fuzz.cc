// Any bytes: parse_value refuses them, or everything that the view hands out lies inside them.
#include <cstdint>
#include <cstdlib>
#include <functional>

#include "wire/value.h"

namespace {

uint64_t touch(std::span<const uint8_t> whole, std::span<const uint8_t> part) {
  std::less_equal<const uint8_t*> le;
  if (!le(whole.data(), part.data()) || !le(part.data() + part.size(), whole.data() + whole.size()))
    std::abort();
  uint64_t sum = 0;
  for (uint8_t byte : part) sum += byte;
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::span<const uint8_t> bytes(data, size);
  auto view = skate::wire::parse_value(bytes);
  if (!view) return 0;
  touch(bytes, view->inband());
  for (uint32_t i = 0; i < view->ref_count(); ++i) {
    if (view->ref(i).owner >= view->owner_count()) std::abort();
    view->owner(view->ref(i).owner);
  }
  auto buffers = view->buffers();
  for (auto buffer : buffers) {
    touch(bytes, buffer);
    if ((buffer.data() - data) % skate::wire::kValueAlign != 0) std::abort();
  }
  auto error = skate::wire::parse_system_error(view->inband());
  if (error) {
    auto again = skate::wire::encode_system_error(error->kind, error->fields);
    auto parsed = skate::wire::parse_value(again);
    if (!parsed) std::abort();
    if (*skate::wire::parse_system_error(parsed->inband()) != *error) std::abort();
  }
  return 0;
}
