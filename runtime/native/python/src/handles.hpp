// The library's objects as the Python module holds them, and its statuses as exceptions.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"

namespace arcflow::python {

// The table of the library that this module came with.
const ArcflowApi& api();

// Raises arcflow_native.NativeError for a status that is not NULL, and destroys it. The interpreter's lock is held.
void check(ArcflowStatus* status);

struct ContextDeleter {
  void operator()(ArcflowContext* context) const { api().context_destroy(context); }
};
struct ModelDeleter {
  void operator()(ArcflowModel* model) const { api().model_destroy(model); }
};
struct SessionDeleter {
  void operator()(ArcflowSession* session) const { api().session_destroy(session); }
};
struct CancelDeleter {
  void operator()(ArcflowCancel* cancel) const { api().cancel_destroy(cancel); }
};
using Context = std::unique_ptr<ArcflowContext, ContextDeleter>;
using ModelHandle = std::unique_ptr<ArcflowModel, ModelDeleter>;
using Session = std::unique_ptr<ArcflowSession, SessionDeleter>;
using Cancel = std::unique_ptr<ArcflowCancel, CancelDeleter>;

Cancel make_cancel();

// A loaded bundle with the sessions that its calls have made: a call takes an idle one or makes another, so that any
// number of threads can generate at once.
class Model {
 public:
  explicit Model(const ArcflowModelOptions& options);

  const ArcflowModel* get() const noexcept { return model_.get(); }
  Session take();
  void give_back(Session session);

 private:
  Context context_;
  ModelHandle model_;
  std::mutex mutex_;
  std::vector<Session> idle_;
};

}  // namespace arcflow::python
