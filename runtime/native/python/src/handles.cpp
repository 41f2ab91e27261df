// See handles.hpp.
#include "handles.hpp"

#include <nanobind/nanobind.h>

#include <stdexcept>

namespace nb = nanobind;

namespace arcflow::python {

const ArcflowApi& api() {
  static const ArcflowApi* const table = arcflow_get_api(ARCFLOW_API_VERSION);
  if (table == nullptr)
    throw std::runtime_error("libarcflow_runtime is older than this module: reinstall arcflow-native");
  return *table;
}

void check(ArcflowStatus* status) {
  if (status == nullptr) return;
  const std::unique_ptr<ArcflowStatus, void(ARCFLOW_CALL*)(ArcflowStatus*)> owner(status, api().status_destroy);
  const nb::object type = nb::module_::import_("arcflow_native._errors").attr("NativeError");
  const char* message = api().status_message(status);
  // A path may hold bytes that are not UTF-8.
  const nb::object text = nb::steal(
      PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::string(message).size()), "backslashreplace"));
  if (!text.is_valid()) throw nb::python_error();
  PyErr_SetObject(type.ptr(), type(api().status_code(status), text).ptr());
  throw nb::python_error();
}

Cancel make_cancel() {
  ArcflowCancel* cancel = nullptr;
  check(api().cancel_create(&cancel));
  return Cancel(cancel);
}

Model::Model(const ArcflowModelOptions& options) {
  ArcflowContext* context = nullptr;
  check(api().context_create(nullptr, &context));
  context_.reset(context);
  ArcflowModel* model = nullptr;
  ArcflowStatus* status = nullptr;
  {
    const nb::gil_scoped_release unlocked;
    status = api().model_open(context, &options, &model);
  }
  check(status);
  model_.reset(model);
}

Session Model::take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      Session session = std::move(idle_.back());
      idle_.pop_back();
      return session;
    }
  }
  ArcflowSession* session = nullptr;
  check(api().session_create(model_.get(), nullptr, &session));
  return Session(session);
}

void Model::give_back(Session session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(session));
}

}  // namespace arcflow::python
