#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "control/storage.h"
#include "rt/sleep.h"
#include "rt/task_group.h"

namespace skate::control {
namespace {

constexpr int kSchemaVersion = 1;
constexpr auto kSyncDelay = std::chrono::milliseconds(40);

struct CloseDatabase {
  void operator()(sqlite3* db) const { sqlite3_close(db); }
};
struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

/// The connection itself; touched by one pool thread at a time, as commits follow each other.
class Database {
 public:
  static Result<std::unique_ptr<Database>> open(const std::string& path) {
    // SQLite creates files by the umask; what is in here is for the owner only.
    UniqueFd created(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!created) return errno_error("cannot open the database " + path);
    auto out = std::unique_ptr<Database>(new Database(path));
    sqlite3* db = nullptr;
    const int opened =
        sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
    out->db_.reset(db);
    if (opened != SQLITE_OK) return out->error("cannot open");
    sqlite3_busy_timeout(db, 2000);
    for (const char* sql :
         {"PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL"})
      SKATE_TRY(out->run(sql));
    SKATE_TRY_ASSIGN(const int version, out->user_version());
    if (version != 0 && version != kSchemaVersion)
      return Error{ErrorCode::kCorrupt, "the database " + path + " has layout " + std::to_string(version) +
                                            ", this release writes " + std::to_string(kSchemaVersion) +
                                            ": give another path"};
    SKATE_TRY(out->run(
        "CREATE TABLE IF NOT EXISTS rows (tab INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, "
        "PRIMARY KEY (tab, key)) WITHOUT ROWID"));
    SKATE_TRY(out->run(("PRAGMA user_version=" + std::to_string(kSchemaVersion)).c_str()));
    SKATE_TRY_ASSIGN(out->put_,
                     out->prepare("INSERT OR REPLACE INTO rows (tab, key, value) VALUES (?1, ?2, ?3)"));
    SKATE_TRY_ASSIGN(out->erase_, out->prepare("DELETE FROM rows WHERE tab = ?1 AND key = ?2"));
    return out;
  }

  Result<std::vector<Row>> load() {
    SKATE_TRY_ASSIGN(Statement select, prepare("SELECT tab, key, value FROM rows ORDER BY tab, key"));
    std::vector<Row> rows;
    while (true) {
      const int step = sqlite3_step(select.get());
      if (step == SQLITE_DONE) return rows;
      if (step != SQLITE_ROW) return error("cannot read");
      rows.push_back({static_cast<Table>(sqlite3_column_int(select.get(), 0)), blob(select.get(), 1),
                      blob(select.get(), 2)});
    }
  }

  Result<void> commit(const std::vector<Row>& rows) {
    SKATE_TRY(run("BEGIN IMMEDIATE"));
    for (const Row& row : rows) {
      if (Result<void> result = apply(row); !result) {
        // The transaction may be gone already (a full disk rolls it back): then this fails, and that is all.
        sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
        return result;
      }
    }
    Result<void> committed = run("COMMIT");
    if (!committed) sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    return committed;
  }

  Result<void> sync() {
    if (!wal_) wal_.reset(::open((path_ + "-wal").c_str(), O_RDWR | O_CLOEXEC));
    if (!wal_) return errno_error("cannot open the log of " + path_);
    if (::fdatasync(wal_.get()) != 0) return errno_error("cannot sync the log of " + path_);
    return {};
  }

 private:
  explicit Database(std::string path) : path_(std::move(path)) {}

  Error error(const std::string& what) const {
    const int code = sqlite3_errcode(db_.get()) & 0xFF;
    const bool corrupt = code == SQLITE_CORRUPT || code == SQLITE_NOTADB;
    const ErrorCode kind = corrupt               ? ErrorCode::kCorrupt
                           : code == SQLITE_FULL ? ErrorCode::kFull
                                                 : ErrorCode::kIo;
    return Error{kind, what + " the database " + path_ + ": " + sqlite3_errmsg(db_.get())};
  }
  Result<void> run(const char* sql) {
    if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK) return error("cannot use");
    return {};
  }
  Result<Statement> prepare(const char* sql) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(db_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK)
      return error("cannot use");
    return Statement(statement);
  }
  Result<int> user_version() {
    SKATE_TRY_ASSIGN(Statement select, prepare("PRAGMA user_version"));
    if (sqlite3_step(select.get()) != SQLITE_ROW) return error("cannot read");
    return sqlite3_column_int(select.get(), 0);
  }
  static std::string blob(sqlite3_stmt* statement, int column) {
    const void* data = sqlite3_column_blob(statement, column);
    const int size = sqlite3_column_bytes(statement, column);
    return data == nullptr ? std::string()
                           : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
  }
  Result<void> apply(const Row& row) {
    sqlite3_stmt* statement = row.value ? put_.get() : erase_.get();
    sqlite3_reset(statement);
    sqlite3_bind_int(statement, 1, static_cast<int>(row.table));
    sqlite3_bind_blob64(statement, 2, row.key.data(), row.key.size(), SQLITE_STATIC);
    if (row.value) sqlite3_bind_blob64(statement, 3, row.value->data(), row.value->size(), SQLITE_STATIC);
    const int step = sqlite3_step(statement);
    if (step == SQLITE_DONE) {
      sqlite3_reset(statement);
      return {};
    }
    const Error failed = error("cannot write");
    sqlite3_reset(statement);
    return failed;
  }

  std::string path_;
  std::unique_ptr<sqlite3, CloseDatabase> db_;
  Statement put_, erase_;  // go before the connection
  UniqueFd wal_;
};

class SqliteStorage final : public Storage {
 public:
  SqliteStorage(std::unique_ptr<Database> database, rt::Pool& pool)
      : database_(std::move(database)), pool_(pool) {}

  Result<std::vector<Row>> load() override { return database_->load(); }
  rt::Task<Result<void>> commit(std::vector<Row> rows) override {
    rt::Loop& loop = co_await rt::this_loop();
    // The work keeps the database alive: it may outlast a cancelled caller.
    std::shared_ptr<Database> database = database_;
    auto work = [database, rows = std::move(rows)] { return database->commit(rows); };
    Result<void> result = co_await rt::run_on(&pool_, std::move(work));
    if (result && !sync_planned_) {
      sync_planned_ = true;
      if (!background_) background_ = std::make_unique<rt::TaskGroup>(loop);
      background_->spawn(sync_later());
    }
    co_return result;
  }
  bool is_volatile() const override { return false; }

 private:
  rt::Task<void> sync_later() {
    co_await rt::sleep_for(kSyncDelay);
    sync_planned_ = false;
    std::shared_ptr<Database> database = database_;
    auto work = [database] { return database->sync(); };
    Result<void> synced = co_await rt::run_on(&pool_, std::move(work));
    if (!synced) sync_planned_ = false;  // the next commit tries again; a disk that fails shows there, too
  }

  std::shared_ptr<Database> database_;  // shared with the pool's work
  rt::Pool& pool_;
  bool sync_planned_ = false;
  std::unique_ptr<rt::TaskGroup> background_;
};

}  // namespace

Result<std::unique_ptr<Storage>> open_sqlite_storage(const std::string& path, rt::Pool& pool) {
  SKATE_TRY_ASSIGN(std::unique_ptr<Database> database, Database::open(path));
  return std::unique_ptr<Storage>(std::make_unique<SqliteStorage>(std::move(database), pool));
}

}  // namespace skate::control
