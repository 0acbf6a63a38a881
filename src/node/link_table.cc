#include "node/link_table.h"

namespace skate::node {

std::optional<uint32_t> LinkTable::take_slot() {
  if (next_slot_ < rpc::kSlotsMax) return next_slot_++;
  if (free_slots_.empty()) return std::nullopt;
  uint32_t slot = free_slots_.front();
  free_slots_.pop_front();
  segment_.clear_slot(slot);
  return slot;
}

void LinkTable::free_slot(uint32_t slot) {
  segment_.clear_slot(slot);
  free_slots_.push_back(slot);
}

std::optional<uint32_t> LinkTable::take_link() {
  settle();
  if (next_link_ < rpc::kLinksMax) return next_link_++;
  if (free_links_.empty()) return std::nullopt;
  uint32_t link = free_links_.front();
  free_links_.pop_front();
  return link;
}

void LinkTable::free_link(uint32_t link) {
  segment_.clear_link(link);
  free_links_.push_back(link);
}

void LinkTable::free_link_after_read(uint32_t link, uint32_t daemon_link) {
  uint64_t position = segment_.link(daemon_link).control[0].tail.load(std::memory_order_relaxed);
  waiting_.push_back({link, daemon_link, position, false});
}

void LinkTable::survivor_gone(uint32_t daemon_link) {
  for (Waiting& item : waiting_)
    if (item.daemon_link == daemon_link) item.gone = true;
}

void LinkTable::settle() {
  for (size_t count = waiting_.size(); count > 0; --count) {
    Waiting item = waiting_.front();
    waiting_.pop_front();
    uint64_t read = segment_.link(item.daemon_link).control[0].head.load(std::memory_order_acquire);
    if (item.gone || read >= item.position) {
      free_link(item.link);
    } else {
      waiting_.push_back(item);
    }
  }
}

}  // namespace skate::node
