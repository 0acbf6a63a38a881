// What a machine has, what is free, and which unit instances (GPU ids) stand behind each allocation.
//
// Guarantee: free + allocated == total for every resource, at any time, also while blocked workers lend
// their CPU; free goes below zero only through reclaim_cpu() and take_anyway(). Pure; one owner (Scheduler).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "wire/types.h"

namespace skate::node {

using wire::ResourceInstances;
using wire::Resources;

/// The resources behind one grant. Give it back to the book exactly once.
struct Allocation {
  Resources amounts;
  /// For unit resources: (instance, units taken of it).
  std::map<std::string, std::vector<std::pair<uint32_t, int64_t>>> shares;
  int64_t cpu_lent{};  ///< part of amounts["CPU"] that a blocked worker lends out
  ResourceInstances instances() const;
};

class ResourceBook {
 public:
  /// `instances` names the ids of each unit resource; a fraction below one never spans two of them.
  ResourceBook(Resources total, ResourceInstances instances);
  /// Over what one allocation holds: a bundle, which its tasks share among them.
  explicit ResourceBook(const Allocation& holding);

  /// Could ever be granted, if everything were free.
  bool feasible(const Resources& need) const;
  bool fits(const Resources& need) const { return fits_beside(need, {}); }
  /// Fits even when `reserved` is set aside for somebody else.
  bool fits_beside(const Resources& need, const Resources& reserved) const;
  /// The part of `need` that is not free now; empty when all of it is.
  Resources lacking(const Resources& need) const;

  /// `need` must fit.
  Allocation take(const Resources& need);
  void give_back(Allocation allocation);
  /// Keeps `keep` of the allocation and frees the rest; what `keep` has beyond it is taken over-subscribed.
  void shrink(Allocation& allocation, const Resources& keep);

  void lend_cpu(Allocation& allocation);
  /// Takes lent CPU back at once, over-subscribed if somebody uses it.
  void reclaim_cpu(Allocation& allocation);

  const Resources& total() const { return total_; }
  /// Never below zero: over-subscription shows as zero.
  Resources available() const;
  int64_t free_of(const std::string& name) const;
  /// The largest fraction, in 1/1000000, of any resource that `used` stands for.
  int64_t dominant_share(const Resources& used) const;
  bool is_whole() const;      ///< everything is free
  std::string check() const;  ///< empty, or what does not add up; for tests

 private:
  Resources total_;
  Resources free_;
  std::map<std::string, std::map<uint32_t, int64_t>> instance_free_;
};

void add_to(Resources& sum, const Resources& amount);
/// May leave entries at or below zero; zero entries are removed.
void subtract_from(Resources& sum, const Resources& amount);
/// "1 CPU, 0.5 GPU" for people.
std::string describe(const Resources& resources);

}  // namespace skate::node
