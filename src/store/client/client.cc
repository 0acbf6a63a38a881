#include "store/client/client.h"

#include <utility>

#include "store/client/core.h"

namespace skate::store {

View::View(View&& other) noexcept
    : core_(std::move(other.core_)),
      entry_(other.entry_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

View& View::operator=(View&& other) noexcept {
  if (this != &other) {
    if (core_) core_->unpin(entry_);
    core_ = std::move(other.core_);
    entry_ = other.entry_;
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

View::~View() {
  if (core_) core_->unpin(entry_);
}

Writable::Writable(Writable&& other) noexcept
    : core_(std::move(other.core_)),
      entry_(other.entry_),
      state_bits_(other.state_bits_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Writable& Writable::operator=(Writable&& other) noexcept {
  if (this != &other) {
    abandon();
    core_ = std::move(other.core_);
    entry_ = other.entry_;
    state_bits_ = other.state_bits_;
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Writable::~Writable() { abandon(); }

void Writable::abandon() {
  if (!core_ || core_->in_forked_child()) return;
  core_->windows().close();
  core_->abandon(entry_, StateWord{state_bits_});
  core_.reset();
}

Result<Client> Client::open(int index_fd, int data_fd, uint32_t slot, ClientOptions options) {
  if (slot == kDaemonSlot) return Error{ErrorCode::kInvalid, "client slot 0 is the node daemon's"};
  SKATE_TRY_ASSIGN(auto core, Core::open(index_fd, data_fd, slot, CoreOptions{options.lock_timeout_ms}));
  return Client(std::move(core));
}

Result<Writable> Client::create(const ObjectId& id, uint64_t bytes) {
  SKATE_TRY_ASSIGN(const Core::Extent extent, core_->create(id, bytes));
  auto memory = core_->open_for_writing(extent);
  if (!memory) {
    core_->abandon(extent.entry, extent.state);
    return memory.error();
  }
  return Writable(core_, extent.entry, extent.state.bits, *memory, extent.bytes);
}

Result<void> Client::seal(Writable&& object) {
  if (!object.core_) return Error{ErrorCode::kInvalid, "this object was sealed or moved from already"};
  if (object.core_->in_forked_child())
    return Error{ErrorCode::kInvalid, "the object store cannot be used in a forked child"};
  const auto core = std::move(object.core_);
  object.core_ = nullptr;
  object.data_ = nullptr;
  core->windows().close();
  return core->seal(object.entry_, StateWord{object.state_bits_});
}

std::optional<View> Client::get(const ObjectId& id) {
  const auto extent = core_->find_and_pin(id);
  if (!extent) return std::nullopt;
  return View(core_, extent->entry, core_->data() + extent->offset, extent->bytes);
}

ObjectInfo Client::info(const ObjectId& id) const {
  if (core_->in_forked_child()) return {};
  const auto found = core_->find(id_words(id));
  if (!found) return {};
  const Entry& entry = core_->region().entry(found->entry);
  ObjectInfo info{ObjectState::kSpilled, entry.size_bytes.load(std::memory_order_acquire),
                  found->state.owner()};
  if (found->state.state() == EntryState::kCreating) info.state = ObjectState::kCreating;
  if (found->state.state() == EntryState::kSealed) info.state = ObjectState::kSealed;
  // The entry may have become another's between the two looks; then it is not what was asked for.
  if (StateWord{entry.state.load(std::memory_order_acquire)}.generation() != found->state.generation())
    return {};
  return info;
}

bool Client::erase(const ObjectId& id) { return core_->erase(id); }
void Client::look_at_children() { core_->look_at_children(); }
uint32_t Client::slot() const { return core_->slot(); }
uint64_t Client::capacity_bytes() const { return core_->region().geo().capacity_bytes; }
uint64_t Client::corruptions() const {
  return core_->region().super().corruptions.load(std::memory_order_relaxed);
}

}  // namespace skate::store
