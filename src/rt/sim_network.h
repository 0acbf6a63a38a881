// SimNetwork: a Network in memory on a SimLoop, with seeded delays, and connections that break on command.
#pragma once

#include <map>
#include <set>

#include "rt/sim_loop.h"
#include "rt/stream.h"

namespace skate::rt {

struct SimNetworkOptions {
  Duration delay_min = std::chrono::microseconds(50);
  Duration delay_max = std::chrono::milliseconds(2);
  /// Each write may break its connection; what was in flight is lost.
  double break_probability = 0;
};

class SimNetwork final : public Network {
 public:
  SimNetwork(SimLoop& loop, SimNetworkOptions options) : loop_(loop), options_(options) {}
  ~SimNetwork() override;

  Task<Result<std::unique_ptr<Stream>>> connect(std::string address) override;
  Result<std::unique_ptr<Listener>> listen(std::string address) override;

  /// Breaks every connection to `address`, now; with `refuse`, new ones fail until allowed again.
  void cut(const std::string& address, bool refuse);
  void allow(const std::string& address) { refused_.erase(address); }
  void set_break_probability(double probability) { options_.break_probability = probability; }

 private:
  friend class SimListener;
  friend class SimStream;
  struct Pipe;
  struct Pending;
  std::shared_ptr<Pipe> new_pipe(const std::string& address);
  Duration random_delay();

  SimLoop& loop_;
  SimNetworkOptions options_;
  std::map<std::string, Pending*> listeners_;
  std::multimap<std::string, std::weak_ptr<Pipe>> pipes_;
  std::set<std::string> refused_;
};

}  // namespace skate::rt
