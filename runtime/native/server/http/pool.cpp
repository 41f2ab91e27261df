// A queue of tasks and the threads that take from it.
#include "server/http/pool.hpp"

#include <system_error>

namespace arcflow::serve {

Pool::Pool(std::size_t threads, std::size_t waiting) : most_(threads), waiting_(waiting) {
  threads_.reserve(most_);  // so that growing cannot fail with a thread that nobody joins
  threads_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool Pool::submit(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (ending_ || tasks_.size() >= waiting_) return false;
  tasks_.push_back(std::move(task));
  if (tasks_.size() > idle_ && threads_.size() < most_) grow();
  changed_.notify_one();
  return true;
}

void Pool::grow() {
  try {
    threads_.emplace_back([this] { work(); });
  } catch (const std::exception&) {  // of threads or memory: the next submit tries again
  }
}

void Pool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    --idle_;
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it held goes without the lock
    lock.lock();
  }
}

}  // namespace arcflow::serve
