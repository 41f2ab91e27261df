// Threads for whole requests.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace arcflow::serve {

// Threads are made when they are first needed. Where the system gives no more, those there are do the work.
class Pool {
 public:
  // At most so many threads, and so many tasks that wait for one. Makes the first thread; throws std::system_error
  // where not even that can be had.
  Pool(std::size_t threads, std::size_t waiting);
  // Finishes what was submitted.
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // False where too many wait. A task must not throw.
  bool submit(std::function<void()> task);

 private:
  void work();
  void grow();

  const std::size_t most_, waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ending_ = false;
};

}  // namespace arcflow::serve
