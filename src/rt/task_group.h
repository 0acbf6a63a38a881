// TaskGroup: where spawned tasks live; there is no detached work.
//
// stop() cancels every task by destroying it and returns when all are gone. Called by one of its own tasks,
// that one runs on to its next suspension point and is destroyed there. The destructor stops. Declare a group
// after what its tasks use, so that it goes first. Lives on its loop's thread.
#pragma once

#include "rt/sync.h"
#include "rt/task.h"

namespace skate::rt {

class TaskGroup {
 public:
  explicit TaskGroup(Loop& loop) : loop_(loop) { roots_.prev = roots_.next = &roots_; }
  ~TaskGroup();
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  /// Starts `task` from the ready queue, not inside this call. False, and the task is dropped, once stopped.
  bool spawn(Task<void> task);
  void stop();
  bool stopped() const { return stopped_; }
  /// Tasks that have not ended.
  size_t size() const { return size_; }
  /// Waits until no task is left. Not from one of the group's own tasks, which would wait for itself.
  Task<void> join();
  Loop& loop() const { return loop_; }

 private:
  friend class Loop;
  void remove();

  Loop& loop_;
  detail::ListNode roots_;
  size_t size_ = 0;
  bool stopped_ = false;
  WaitList emptied_;
};

}  // namespace skate::rt
