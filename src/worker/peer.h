// Peer: another process as this one sees it: the link to it (opened on first use), what waits for the link,
// and which functions it has been told. Guarded by the runtime's lock; lives as long as the runtime.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rpc/link.h"
#include "wire/records.h"

namespace skate::worker {

struct FunctionSlot;

class Peer {
 public:
  enum class State : uint8_t { kUnknown, kOpening, kOpen, kDead };

  wire::Address address;
  State state = State::kUnknown;
  std::unique_ptr<rpc::Link> link;
  wire::Death death;  ///< when dead
  int32_t pid = 0;
  bool dirty = false;  ///< records were sent since the reader was last told
  rpc::Urgency urgency = rpc::Urgency::kLazy;
  uint32_t push_sequence = 0;        ///< of claims on this link
  std::vector<bool> knows_function;  ///< by this process's function number
  std::vector<std::shared_ptr<FunctionSlot>>
      functions;                                 ///< the peer's functions, by its numbers (executor side)
  std::shared_ptr<const wire::LeaseInfo> lease;  ///< the peer's lease of this process (executor side)
  struct Waiting {
    uint16_t type;
    rpc::Urgency urgency;
    std::string body;
  };
  std::vector<Waiting> waiting;  ///< until the link is open
};

}  // namespace skate::worker
