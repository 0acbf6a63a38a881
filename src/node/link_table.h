// Which slots and links of the link segment are in use.
//
// A link whose one end died is used again only when the other end has read the daemon's word of it, as until
// then it may still write there. Slots come back at once: what a stale peer does to a slot is a spurious
// wake. Home: the daemon's loop.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "rpc/segment.h"

namespace skate::node {

class LinkTable {
 public:
  explicit LinkTable(rpc::Segment& segment) : segment_(segment) {}

  /// Nothing when all kSlotsMax are in use.
  std::optional<uint32_t> take_slot();
  void free_slot(uint32_t slot);
  /// Nothing when all kLinksMax are in use.
  std::optional<uint32_t> take_link();
  void free_link(uint32_t link);
  /// Free once the survivor has read `daemon_link` (side 0 writes) up to what is written there now.
  void free_link_after_read(uint32_t link, uint32_t daemon_link);
  /// The survivor is gone, too.
  void survivor_gone(uint32_t daemon_link);

 private:
  struct Waiting {
    uint32_t link{};
    uint32_t daemon_link{};
    uint64_t position{};
    bool gone{};
  };
  void settle();

  rpc::Segment& segment_;
  uint32_t next_slot_ = 0;
  uint32_t next_link_ = 0;
  std::deque<uint32_t> free_slots_;
  std::deque<uint32_t> free_links_;
  std::deque<Waiting> waiting_;
};

}  // namespace skate::node
