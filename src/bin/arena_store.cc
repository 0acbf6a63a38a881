#include "bin/arena_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "node/machine.h"
#include "rt/pool.h"
#include "rt/sleep.h"
#include "store/arena.h"
#include "store/spill.h"
#include "wire/value.h"

namespace skate::bin {
namespace {

using node::human_bytes;

constexpr uint64_t kSpillBatchBytes = 64ull << 20;  // picked and written at a time
constexpr size_t kSweepObjects = 1000;              // spilled and erased ones looked for in one step
constexpr uint64_t kRecoverAgainMs = 10;

uint64_t now_ms(const rt::Loop& loop) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(loop.now().time_since_epoch()).count());
}

/// Spills one batch at a time, so that two who want room do not pick for each other's need twice.
class ArenaStore final : public node::ObjectStore {
 public:
  ArenaStore(rt::Loop& loop, std::unique_ptr<store::Arena> arena, std::unique_ptr<store::Spill> spill,
             store::Client reader)
      : loop_(loop),
        arena_(std::move(arena)),
        spill_(std::move(spill)),
        reader_(std::move(reader)),
        pool_(1) {}

  int index_fd() const override { return arena_->index_fd(); }
  int data_fd() const override { return arena_->data_fd(); }
  uint64_t capacity_bytes() const override { return arena_->stats().capacity_bytes; }
  Result<uint32_t> add_client(int32_t pid) override { return arena_->attach_client(pid); }
  void recover_client(uint32_t slot) override {
    if (!arena_->recover_client(slot)) unrecovered_.push_back(slot);
  }

  rt::Task<void> upkeep() override {
    uint64_t erased_seen = 0;
    while (true) {
      for (uint32_t slot : std::exchange(unrecovered_, {})) recover_client(slot);
      uint64_t pause_ms = arena_->step(now_ms(loop_));
      if (const uint64_t erased = arena_->spilled_erased(); erased != erased_seen) {
        const size_t found = spill_->sweep(
            [&](const ObjectId& id) { return arena_->info(id).state == store::ObjectState::kAbsent; },
            kSweepObjects);
        if (found == 0) erased_seen = erased;
      }
      if (!unrecovered_.empty()) pause_ms = std::min(pause_ms, kRecoverAgainMs);
      co_await rt::sleep_for(std::chrono::milliseconds(pause_ms));
    }
  }

  rt::Task<Result<void>> make_space(uint64_t bytes) override {
    while (spilling_) co_await spilled_.wait();
    spilling_ = true;
    struct Done {
      ArenaStore& store;
      ~Done() {
        store.spilling_ = false;
        store.spilled_.wake_all();
      }
    } done{*this};
    uint64_t freed = 0;
    while (freed < bytes) {
      std::vector<store::SpillVictim> victims =
          arena_->pick_spill_victims(std::min(bytes - freed, kSpillBatchBytes));
      if (victims.empty()) break;
      std::vector<store::SpillItem> items;
      for (const store::SpillVictim& victim : victims)
        items.push_back({victim.id, victim.data, victim.bytes});
      auto write = [spill = spill_.get(), items = std::move(items)] { return spill->write(items); };
      Result<void> written = co_await rt::run_on(&pool_, std::move(write));
      for (const store::SpillVictim& victim : victims) {
        if (!written) {
          arena_->abandon_spill(victim);
        } else if (arena_->commit_spill(victim)) {
          freed += victim.bytes;
        } else {
          spill_->forget(victim.id);
        }
      }
      if (!written) co_return written.error();
    }
    // Some room is worth another try; none is an answer.
    if (freed == 0) co_return full(bytes);
    co_return Result<void>();
  }

  rt::Task<Restored> restore(std::vector<ObjectId> objects) override {
    Restored out;
    for (const ObjectId& id : objects) {
      Result<void> restored = co_await restore_one(id);
      if (restored) {
        out.restored.push_back(id);
      } else {
        out.lost.push_back(id);
        out.message = restored.error().message;
      }
    }
    co_return out;
  }

  void erase(const std::vector<ObjectId>& objects) override {
    for (const ObjectId& id : objects) {
      arena_->erase(id);
      spill_->forget(id);
    }
  }

  std::vector<ObjectId> objects() override {
    std::vector<ObjectId> out;
    uint32_t cursor = 0;
    do {
      for (const store::StoredObject& object : arena_->list(&cursor))
        if (object.info.state != store::ObjectState::kCreating) out.push_back(object.id);
    } while (cursor != 0);
    return out;
  }
  std::optional<wire::KeptObject> look(const ObjectId& id) override {
    wire::KeptObject out;
    out.id = id;
    out.stored = true;
    if (std::optional<store::View> view = reader_.get(id)) {
      out.size_bytes = view->size();
      Result<wire::ValueView> value = wire::parse_value(view->span());
      if (!value) return out;  // readers will find out
      out.is_error = value->is_error();
      out.contained.reserve(value->ref_count());
      for (uint32_t i = 0; i < value->ref_count(); ++i) {
        const wire::ValueRef ref = value->ref(i);
        out.contained.emplace_back(ref.id, value->owner(ref.owner));
      }
      return out;
    }
    const store::ObjectInfo info = arena_->info(id);
    if (info.state != store::ObjectState::kSpilled) return std::nullopt;
    out.size_bytes = info.bytes;
    return out;
  }

 private:
  rt::Task<Result<void>> restore_one(ObjectId id) {
    Result<store::RestoreTarget> target = arena_->begin_restore(id);
    if (!target && target.error().code == ErrorCode::kFull) {
      const uint64_t bytes = arena_->info(id).bytes;
      Result<void> room = co_await make_space(bytes);
      if (!room) co_return room.error();
      target = arena_->begin_restore(id);
    }
    if (!target) {
      if (target.error().code == ErrorCode::kExists) co_return Result<void>();  // here, or on its way
      co_return target.error();
    }
    auto work = [spill = spill_.get(), id, into = std::span<uint8_t>(target->data, target->bytes)] {
      return spill->read(id, into);
    };
    Result<void> read = co_await rt::run_on(&pool_, std::move(work));
    arena_->finish_restore(*target, read.ok());
    if (read) spill_->forget(id);
    co_return read;
  }

  Error full(uint64_t bytes) const {
    const store::ArenaStats stats = arena_->stats();
    return Error{ErrorCode::kFull,
                 "the object store has no room for " + human_bytes(bytes) + ": " +
                     human_bytes(stats.used_bytes) + " of " + human_bytes(stats.capacity_bytes) +
                     " are used by " + std::to_string(stats.objects - stats.spilled_objects) +
                     " objects that are all in use, " + human_bytes(stats.spilled_bytes) + " are on disk"};
  }

  rt::Loop& loop_;
  std::unique_ptr<store::Arena> arena_;
  std::unique_ptr<store::Spill> spill_;
  store::Client reader_;  // the daemon's own: looks into values
  std::vector<uint32_t> unrecovered_;
  bool spilling_ = false;
  rt::WaitList spilled_;
  rt::ThreadPool pool_;  // goes first: its work uses the arena's memory
};

}  // namespace

Result<std::unique_ptr<node::ObjectStore>> make_arena_store(rt::Loop& loop, node::StoreOptions options) {
  if (::mkdir(options.spill_dir.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_error("cannot create " + options.spill_dir);
  store::ArenaOptions arena_options;
  arena_options.capacity_bytes = options.capacity_bytes;
  SKATE_TRY_ASSIGN(std::unique_ptr<store::Arena> arena, store::Arena::create(arena_options));
  store::SpillOptions spill_options;
  spill_options.directory = options.spill_dir;
  SKATE_TRY_ASSIGN(std::unique_ptr<store::Spill> spill, store::Spill::open(spill_options));
  SKATE_TRY_ASSIGN(uint32_t slot, arena->attach_client(::getpid()));
  SKATE_TRY_ASSIGN(store::Client reader, store::Client::open(arena->index_fd(), arena->data_fd(), slot));
  return std::unique_ptr<node::ObjectStore>(
      std::make_unique<ArenaStore>(loop, std::move(arena), std::move(spill), std::move(reader)));
}

}  // namespace skate::bin
