// Leaving: how a process that has served its time (max_calls) or is not needed (idle) ends without taking
// along what others hold of it. The protocol: src/node/adoption/README.md; the rule behind it: hand-over, at
// the head of ownership/object_table.h.
//
//   kNo --leave, Exit--> kWanted --all is still--> kOffered --kept--> kWanted ... --all is given--> kMay
//                           |                         +--refused--> kRefused --nobody holds anything--> kMay
//                           +--not still, asked for being idle--> kNo, ExitDeclined (also from kRefused)
//
// Looked at in each flush, that is after each batch of what changes the state. Nothing is timed: while no
// answer comes the process serves as ever, and only says that it stays.
#include <cstdio>

#include "worker/runtime.h"

namespace skate::worker {

namespace {
// Of one HandOver. The next follows its answer, so that a refusal is of all that is on its way.
constexpr uint64_t kPartBytes = 4 << 20;
constexpr size_t kPartObjects = 4096;
constexpr std::chrono::seconds kSilenceWorthAWord{30};
}  // namespace

/// Nothing is under way that its daemon could not go on with.
bool Runtime::may_hand_over() const {
  return tasks_.size() == free_tasks_.size() && untaken_results_.empty() && running_.empty() &&
         objects_.may_give();
}

void Runtime::leave_step() {
  if (leaving_ == Leaving::kRefused && objects_.granted_any()) return;
  if (leaving_ != Leaving::kWanted && leaving_ != Leaving::kRefused) return;
  if (!may_hand_over()) {
    if (leaving_idle_) stay();
    return;
  }
  std::vector<Entry*> given = objects_.give(kPartBytes, kPartObjects);
  if (given.empty()) {
    leaving_ = Leaving::kMay;
    leaving_changed_.notify_all();
    if (leaving_idle_) begin_exit(*leaving_idle_);
    return;
  }
  wire::HandOver message{++hand_over_call_, {}};
  message.objects.reserve(given.size());
  for (const Entry* entry : given) {
    wire::KeptObject kept;
    kept.id = entry->id;
    kept.stored = entry->state.load() == ObjectState::kStored;
    kept.is_error = entry->is_error;
    kept.size_bytes = entry->size_bytes;
    if (!kept.stored) {
      std::span<const uint8_t> value = entry->value->bytes();
      kept.value.assign(reinterpret_cast<const char*>(value.data()), value.size());
    }
    if (entry->contained)
      for (const Entry* inner : *entry->contained) kept.contained.emplace_back(inner->id, owner_of(inner));
    message.objects.push_back(std::move(kept));
  }
  leaving_ = Leaving::kOffered;
  send_daemon(wire::MessageType::kHandOver, message);
}

void Runtime::handed_over(const wire::HandedOver& answer) {
  if (leaving_ != Leaving::kOffered || answer.call_id != hand_over_call_) return;
  leaving_ = answer.kept ? Leaving::kWanted : Leaving::kRefused;
  if (answer.kept) return;  // the flush that follows goes on
  objects_.take_home();
  leaving_changed_.notify_all();
  if (leaving_idle_) stay();
}

void Runtime::asked_to_leave(const wire::Exit& exit) {
  if (exit.reason.kind != wire::DeathKind::kIntended || hosts_actor_) return begin_exit(exit.reason);
  if (leaving_ != Leaving::kNo) return;  // it is on its way
  leaving_idle_ = exit.reason;
  leaving_ = Leaving::kWanted;
}

/// It was asked to go for being idle, and cannot.
void Runtime::stay() {
  objects_.take_home();
  leaving_ = Leaving::kNo;
  leaving_idle_.reset();
  send_daemon_body(static_cast<uint16_t>(wire::MessageType::kExitDeclined), {});
}

void Runtime::leave(const std::string& why) {
  std::unique_lock lock(mutex_);
  leaving_idle_.reset();
  if (leaving_ == Leaving::kNo) leaving_ = Leaving::kWanted;
  flush();
  auto over = [&] { return leaving_ == Leaving::kMay || exiting_.load() || stopping_.load(); };
  auto refused = [&] { return leaving_ == Leaving::kRefused; };
  const bool told = leaving_changed_.wait_for(lock, kSilenceWorthAWord, [&] { return over() || refused(); });
  if (over()) return;
  const char* reason = refused() ? "its node has no room for the small values"
                       : told || leaving_ != Leaving::kOffered
                           ? "it waits for tasks, results or actors of its own"
                           : "its node daemon does not answer";
  std::fprintf(stderr, "skate: this worker should end (%s) but stays as long as it is needed: %s\n",
               why.c_str(), reason);
  std::fflush(stderr);
  leaving_changed_.wait(lock, over);
}

}  // namespace skate::worker
