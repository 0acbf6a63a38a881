#include "store/capacity.h"

#include <gtest/gtest.h>

namespace skate::store {
namespace {

constexpr const char* kMeminfo =
    "MemTotal:       24684092 kB\n"
    "MemFree:        22599784 kB\n"
    "MemAvailable:   20000000 kB\n"
    "Hugepagesize:       2048 kB\n";

TEST(Capacity, ReadsMeminfo) {
  EXPECT_EQ(parse_meminfo_bytes(kMeminfo, "MemAvailable"), 20'000'000ull * 1024);
  EXPECT_EQ(parse_meminfo_bytes(kMeminfo, "MemTotal"), 24'684'092ull * 1024);
  EXPECT_EQ(parse_meminfo_bytes(kMeminfo, "Mem"), std::nullopt);
  EXPECT_EQ(parse_meminfo_bytes("MemTotal: lots kB\n", "MemTotal"), std::nullopt);
  EXPECT_EQ(parse_meminfo_bytes("MemTotal: 99999999999999999999999 kB", "MemTotal"), std::nullopt);
  EXPECT_EQ(parse_meminfo_bytes("", "MemTotal"), std::nullopt);
}

TEST(Capacity, ReadsBothKindsOfLimit) {
  EXPECT_EQ(parse_cgroup_limit_bytes("1073741824\n"), 1073741824ull);
  EXPECT_EQ(parse_cgroup_limit_bytes("max\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit_bytes("9223372036854771712\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit_bytes("0\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit_bytes(""), std::nullopt);
}

TEST(Capacity, LooksAtAGroupAndItsAncestors) {
  EXPECT_EQ(cgroup_limit_files("0::/user.slice/job\n", "/m"),
            (std::vector<std::string>{"/m/user.slice/job/memory.max", "/m/unified/user.slice/job/memory.max",
                                      "/m/user.slice/memory.max", "/m/unified/user.slice/memory.max",
                                      "/m/memory.max", "/m/unified/memory.max"}));
  EXPECT_EQ(
      cgroup_limit_files("9:name=systemd:/\n4:cpu,memory:/a\n3:cpuset:/\n", "/m"),
      (std::vector<std::string>{"/m/memory/a/memory.limit_in_bytes", "/m/memory/memory.limit_in_bytes"}));
  EXPECT_TRUE(cgroup_limit_files("nonsense\n::\n4:memory:relative\n", "/m").empty());
}

TEST(Capacity, IsAShareOfTheLeast) {
  constexpr uint64_t kGiB = 1ull << 30;
  MemoryFacts facts;
  EXPECT_EQ(capacity_bytes_for(facts), 64ull << 20);
  facts.total_bytes = 20 * kGiB;
  facts.available_bytes = 10 * kGiB;
  EXPECT_EQ(capacity_bytes_for(facts), 10 * kGiB / 10 * 3 / 65536 * 65536);
  facts.limits_bytes = {50 * kGiB, kGiB};
  EXPECT_EQ(capacity_bytes_for(facts), kGiB / 10 * 3 / 65536 * 65536);
  facts.limits_bytes = {100 << 20};
  EXPECT_EQ(capacity_bytes_for(facts), 50ull << 20);
}

TEST(Capacity, ThisMachineHasOne) {
  EXPECT_TRUE(read_memory_facts().total_bytes.has_value());
  EXPECT_GT(default_capacity_bytes(), 1ull << 20);
}

}  // namespace
}  // namespace skate::store
