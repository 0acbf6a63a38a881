// Flat values that the runtime makes itself: system errors (a task whose worker died, a lost object, ...).
#pragma once

#include <map>
#include <string>

#include "wire/types.h"
#include "worker/blob.h"

namespace skate::worker {

/// A flat value of format kSystemError: `kind` (as skate._errors knows it) and named fields, all text.
BlobPtr system_error(const std::string& kind, const std::map<std::string, std::string>& fields);
/// The fields that describe a death, for system_error.
std::map<std::string, std::string> death_fields(const wire::Death& death);
/// What a death means for a task or actor call: the kind of error to raise.
const char* error_kind_of(const wire::Death& death, bool of_actor);

BlobPtr lost_object_error(const ObjectId& id, const std::string& why);
BlobPtr owner_died_error(const ObjectId& id, const wire::Death& death);
/// `retries`: how often it was run again before.
BlobPtr task_error(const wire::Death& death, const std::string& task_name, uint32_t retries = 0);
BlobPtr cancelled_error(const TaskId& task, const std::string& task_name);

}  // namespace skate::worker
