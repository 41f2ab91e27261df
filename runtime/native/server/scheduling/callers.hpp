// How many requests each caller has open, over all models.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace arcflow::serve {

class Callers {
 public:
  // One open request, until it is destroyed. The callers must outlive it.
  class Place {
   public:
    Place(Callers& callers, std::string caller) : callers_(callers), caller_(std::move(caller)) {}
    ~Place() { callers_.leave(caller_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    Callers& callers_;
    const std::string caller_;
  };

  // Null where the caller has `most` open already; 0: any number.
  std::unique_ptr<Place> enter(const std::string& caller, std::size_t most) {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(caller);
    if (most > 0 && found != open_.end() && found->second >= most) return nullptr;
    auto place = std::make_unique<Place>(*this, caller);
    ++open_[caller];
    return place;
  }

 private:
  void leave(const std::string& caller) {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(caller);
    if (--found->second == 0) open_.erase(found);
  }

  std::mutex mutex_;
  std::map<std::string, std::size_t> open_;  // never 0
};

}  // namespace arcflow::serve
