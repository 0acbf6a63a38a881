#include "control/committer.h"

#include "rt/sleep.h"

namespace skate::control {

Committer::Committer(rt::Loop& loop, Storage& storage, std::function<void(std::string)> log)
    : storage_(storage), log_(std::move(log)), tasks_(loop) {
  tasks_.spawn(run());
}

uint64_t Committer::append(std::vector<Row> rows) {
  if (rows.empty()) return appended_;
  ++appended_;
  if (storage_.is_volatile()) {
    committed_ = appended_;
    return appended_;
  }
  for (Row& row : rows) gathering_.push_back(std::move(row));
  appended_more_.wake_all();
  return appended_;
}

rt::Task<void> Committer::wait(uint64_t number) {
  while (!is_committed(number)) co_await committed_more_.wait();
}

rt::Task<void> Committer::run() {
  while (true) {
    while (gathering_.empty()) co_await appended_more_.wait();
    const std::vector<Row> batch = std::exchange(gathering_, {});
    const uint64_t last = appended_;
    rt::Duration pause = std::chrono::milliseconds(20);
    while (true) {
      std::vector<Row> rows = batch;
      Result<void> result = co_await storage_.commit(std::move(rows));
      if (result) break;
      log_("nothing can be logged, requests wait: " + result.error().message);
      co_await rt::sleep_for(pause);
      pause = std::min<rt::Duration>(pause * 2, std::chrono::seconds(5));
    }
    committed_ = last;
    committed_more_.wake_all();
  }
}

}  // namespace skate::control
