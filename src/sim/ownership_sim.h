// Ownership on virtual time: several processes with the real ObjectTable, the real AdoptedObjects of their
// node's daemon, and a store that is a map. They put, pass refs on in arguments, results and objects, keep
// them as actors do, read and drop; messages keep their order on each link and overtake each other between
// links; processes hand over and end, or die at any message, and the daemon notices later; messages that may
// come twice do. Everything follows from the seed.
//
// Checked after every step: what a living process holds is with its living owner, or with the heir of one
// that ended in order, and what is stored is in the store, though its owner died; what the heir keeps keeps
// what it contains. Excused is only a hold that its owner's books never had, of an object that somebody had
// who died unwarned. In the end: nobody waits, all counts are zero, the store and the daemon are empty. Not
// here: retries of tasks, more than one node.
#pragma once

#include <cstdint>
#include <string>

namespace skate::sim {

struct OwnershipReport {
  std::string problem;  ///< empty: all is well
  uint64_t messages{};
  uint64_t claims{};
  uint64_t adopted{};  ///< answers that an object was kept
  uint64_t lost{};
  uint32_t deaths{};      ///< unwarned
  uint32_t hand_overs{};  ///< processes that ended in order
  uint32_t refusals{};    ///< of hand-overs, for want of room
};

OwnershipReport run_ownership(uint64_t seed);

}  // namespace skate::sim
