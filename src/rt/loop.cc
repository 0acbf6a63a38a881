#include "rt/loop.h"

#include <signal.h>

#include "rt/task.h"
#include "rt/task_group.h"

namespace skate::rt {

TimerHook::~TimerHook() {
  if (loop_ != nullptr) loop_->disarm(*this);
}

Loop::~Loop() { SKATE_ASSERT(timers_.empty(), "a timer outlives its loop"); }

void Loop::schedule(detail::Waiter& waiter) { ready_.push_back(waiter); }

void Loop::arm(TimerHook& hook, TimePoint when) {
  assert_home();
  if (hook.loop_ != nullptr) hook.loop_->disarm(hook);
  hook.loop_ = this;
  hook.key_ = {when, timer_sequence_++};
  timers_.emplace(hook.key_, &hook);
}

void Loop::disarm(TimerHook& hook) {
  if (hook.loop_ == nullptr) return;
  hook.loop_ = nullptr;
  timers_.erase(hook.key_);
}

void Loop::fire_timers() {
  // Timers armed meanwhile for a time already past wait for the next turn: otherwise they could starve the
  // rest.
  const TimePoint time = now();
  const uint64_t first_new = timer_sequence_;
  auto next = timers_.begin();
  while (next != timers_.end() && next->first.first <= time) {
    if (next->first.second >= first_new) {
      ++next;
      continue;
    }
    TimerHook* hook = next->second;
    disarm(*hook);
    hook->on_timer();
    next = timers_.begin();  // on_timer may have changed anything
  }
}

std::optional<TimePoint> Loop::next_timer() const {
  if (timers_.empty()) return std::nullopt;
  return timers_.begin()->first.first;
}

void Loop::run_ready(size_t count) {
  while (count-- > 0 && has_ready()) {
    detail::Waiter* waiter = pick_ready();
    waiter->unlink();
    resume(*waiter);
  }
}

void Loop::resume(detail::Waiter& waiter) {
  detail::Root* root = waiter.root;
  SKATE_ASSERT(current_ == nullptr, "a coroutine is resumed inside another one");
  current_ = root;
  waiter.handle.resume();
  current_ = nullptr;
  const bool done = root->task.handle().done();
  if (!done && !root->doomed) return;
  std::unique_ptr<detail::Root> ended(root);
  if (done) root->task.handle().promise().take();  // an exception that nobody caught ends the program here
  TaskGroup* group = std::exchange(root->group, nullptr);
  ended.reset();  // its frame may use what waiters of join() destroy
  if (group != nullptr) group->remove();
}

TaskGroup::~TaskGroup() { stop(); }

bool TaskGroup::spawn(Task<void> task) {
  loop_.assert_home();
  if (stopped_) return false;
  auto root = std::make_unique<detail::Root>();
  root->loop = &loop_;
  root->group = this;
  root->task = std::move(task);
  root->task.handle().promise().root = root.get();
  root->start.handle = root->task.handle();
  root->start.root = root.get();
  loop_.schedule(root->start);
  root->prev = roots_.prev;
  root->next = &roots_;
  roots_.prev->next = root.get();
  roots_.prev = root.release();
  ++size_;
  return true;
}

void TaskGroup::stop() {
  loop_.assert_home();
  stopped_ = true;
  while (roots_.next != &roots_) {
    auto* root = static_cast<detail::Root*>(roots_.next);
    root->unlink();
    root->group = nullptr;
    --size_;
    if (root == loop_.current_) {
      root->doomed = true;  // it is on the stack: the loop destroys it when it comes back
    } else {
      delete root;
    }
  }
  emptied_.wake_all();
}

void TaskGroup::remove() {
  if (--size_ == 0) emptied_.wake_all();
}

Task<void> TaskGroup::join() {
  while (size_ > 0) co_await emptied_.wait();
}

LoopThread::LoopThread() : loop_(make_loop()) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { loop_->run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LoopThread::~LoopThread() {
  loop_->stop();
  thread_.join();
}

}  // namespace skate::rt
