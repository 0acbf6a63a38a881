#include "base/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>
#include <type_traits>

namespace skate {
namespace {

Result<int> half(int number) {
  if (number % 2 != 0) return Error{ErrorCode::kInvalid, "odd"};
  return number / 2;
}

Result<void> check_even(int number) {
  SKATE_TRY(half(number));
  return {};
}

Result<int> quarter(int number) {
  SKATE_TRY_ASSIGN(const int once, half(number));
  SKATE_TRY_ASSIGN(const int twice, half(once));
  return twice;
}

TEST(Result, HoldsAValueOrAnError) {
  const Result<int> good = half(8);
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(*good, 4);
  const Result<int> bad = half(7);
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error(), (Error{ErrorCode::kInvalid, "odd"}));
}

TEST(Result, OfVoidIsOkUnlessGivenAnError) {
  EXPECT_TRUE(Result<void>().ok());
  const Result<void> bad = Error{ErrorCode::kFull, "no room"};
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().message, "no room");
}

TEST(Result, IsNeverEmpty) {
  const Result<std::string> good = std::string("text");
  EXPECT_EQ(good->size(), 4u);
  static_assert(!std::is_default_constructible_v<Result<std::string>>, "neither value nor error");
}

TEST(Result, GivesUpWhatItHolds) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(5);
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 5);
}

TEST(Result, TryPassesTheErrorOn) {
  EXPECT_TRUE(check_even(2).ok());
  EXPECT_EQ(check_even(3).error().message, "odd");
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(5).error().message, "odd") << "from the first step";
  EXPECT_EQ(quarter(6).error().message, "odd") << "from the second step";
}

TEST(ResultDeathTest, MisuseIsABugAndAborts) {
  const Result<int> good = half(2), bad = half(1);
  EXPECT_DEATH((void)bad.value(), "holds an error");
  EXPECT_DEATH((void)good.error(), "holds a value");
  EXPECT_DEATH((void)Result<void>().error(), "is ok");
}

TEST(Error, OfErrnoHasItsText) {
  errno = ENOSPC;
  const Error error = errno_error("writing the spill file");
  EXPECT_EQ(error.code, ErrorCode::kIo);
  EXPECT_NE(error.message.find("writing the spill file"), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("No space left on device"), std::string::npos) << error.message;
}

TEST(Error, EachCodeHasItsOwnName) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kIo); ++code)
    names.insert(to_string(static_cast<ErrorCode>(code)));
  EXPECT_EQ(names.size(), static_cast<size_t>(ErrorCode::kIo) + 1);
  EXPECT_EQ(names.count("unknown"), 0u);
}

TEST(AssertDeathTest, SaysWhereAndWhy) {
  EXPECT_DEATH(SKATE_ASSERT(1 + 1 == 3, "sums are off"),
               "1 \\+ 1 == 3.*sums are off|sums are off.*1 \\+ 1 == 3");
  EXPECT_DEATH(SKATE_ASSERT(false, "here"), "result_test\\.cc");
  SKATE_ASSERT(true, "nothing happens");
}

}  // namespace
}  // namespace skate
