#include "control/storage.h"

namespace skate::control {
namespace {

class MemoryStorage final : public Storage {
 public:
  Result<std::vector<Row>> load() override { return std::vector<Row>(); }
  rt::Task<Result<void>> commit(std::vector<Row>) override { co_return Result<void>(); }
  bool is_volatile() const override { return true; }
};

}  // namespace

std::unique_ptr<Storage> make_memory_storage() { return std::make_unique<MemoryStorage>(); }

}  // namespace skate::control
