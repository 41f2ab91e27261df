// Running networks over caller-given buffers in main memory.
#include "hosts/ort/session.hpp"

#include <algorithm>
#include <new>
#include <string>

#include "hosts/table.hpp"

namespace arcflow::ort {
namespace {

using core::Error;

// A cache line, and what the widest vector instructions like.
constexpr std::align_val_t kAlignment{64};

std::string shape_text(const ArcflowHostBinding& binding) {
  return hosts::shape_text(binding.dims, static_cast<std::size_t>(binding.rank));
}

}  // namespace

Buffer::Buffer(std::uint64_t bytes, std::shared_ptr<std::atomic<std::uint64_t>> total)
    : data_(static_cast<std::byte*>(::operator new(std::max<std::uint64_t>(bytes, 1), kAlignment))),
      bytes_(bytes),
      total_(std::move(total)) {
  *total_ += bytes_;
}

Buffer::~Buffer() {
  *total_ -= bytes_;
  ::operator delete(data_, kAlignment);
}

std::byte* Buffer::at(std::uint64_t offset, std::uint64_t bytes) const {
  hosts::check_inside(offset, bytes, bytes_);
  return data_ + offset;
}

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      total_(std::make_shared<std::atomic<std::uint64_t>>(0)),
      options_(nullptr, model_->api().ReleaseRunOptions) {
  OrtRunOptions* options = nullptr;
  check(model_->api(), model_->api().CreateRunOptions(&options), "ONNX Runtime cannot make a session");
  options_.reset(options);
}

// Makes a tensor over the binding's memory and appends it to `values`.
void Session::bind(const Network& network, const std::vector<Port>& ports, const ArcflowHostBinding& binding,
                   std::vector<Handle<OrtValue>>& values) const {
  const auto port = std::find_if(ports.begin(), ports.end(), [&](const Port& p) { return p.name == binding.name; });
  if (port == ports.end()) {
    throw Error(ARCFLOW_INTERNAL, "the " + network.name + " network has no port '" + binding.name + "'");
  }
  std::uint64_t bytes = element_bytes(port->type);
  for (std::int32_t axis = 0; axis < binding.rank; ++axis) {
    const std::int64_t dim = binding.dims[axis];
    if (dim < 0 || (dim > 0 && bytes > INT64_MAX / static_cast<std::uint64_t>(dim))) {
      throw Error(ARCFLOW_INTERNAL, port->name + " " + shape_text(binding) + " is not a shape");
    }
    bytes *= static_cast<std::uint64_t>(dim);
  }
  OrtValue* value = nullptr;
  check(model_->api(),
        model_->api().CreateTensorWithDataAsOrtValue(model_->memory(), binding.buffer->buffer.at(binding.offset, bytes),
                                                     bytes, binding.dims, static_cast<std::size_t>(binding.rank),
                                                     port->type, &value),
        "the " + network.name + " network cannot take " + port->name + " " + shape_text(binding));
  values.emplace_back(value, model_->api().ReleaseValue);
}

void Session::run(std::size_t index, const ArcflowHostBinding* inputs, std::size_t input_count,
                  const ArcflowHostBinding* outputs, std::size_t output_count) {
  const Network& network = model_->network(index);
  if (interrupted_) throw Error(ARCFLOW_CANCELLED, "the request was cancelled");
  std::vector<Handle<OrtValue>> values;
  std::vector<const char*> names;
  values.reserve(input_count + output_count);
  for (std::size_t place = 0; place < input_count; ++place) {
    bind(network, network.inputs, inputs[place], values);
    names.push_back(inputs[place].name);
  }
  for (std::size_t place = 0; place < output_count; ++place) {
    bind(network, network.outputs, outputs[place], values);
    names.push_back(outputs[place].name);
  }
  std::vector<OrtValue*> raw;
  for (const auto& value : values) raw.push_back(value.get());
  OrtStatus* status = model_->api().Run(network.session.get(), options_.get(), names.data(), raw.data(), input_count,
                                        names.data() + input_count, output_count, raw.data() + input_count);
  if (status == nullptr) return;
  if (interrupted_) {
    model_->api().ReleaseStatus(status);
    throw Error(ARCFLOW_CANCELLED, "the request was cancelled");
  }
  std::string shapes;
  for (std::size_t place = 0; place < input_count; ++place) {
    shapes += (place == 0 ? "" : ", ") + std::string(inputs[place].name) + " " + shape_text(inputs[place]);
  }
  check(model_->api(), status, "the " + network.name + " network failed on " + shapes);
}

void Session::interrupt() {
  const std::lock_guard<std::mutex> lock(mutex_);
  interrupted_ = true;
  // Setting a flag cannot fail; if it ever did, the run would only end later.
  if (OrtStatus* status = model_->api().RunOptionsSetTerminate(options_.get())) model_->api().ReleaseStatus(status);
}

void Session::rearm() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (OrtStatus* status = model_->api().RunOptionsUnsetTerminate(options_.get())) model_->api().ReleaseStatus(status);
  interrupted_ = false;
}

}  // namespace arcflow::ort
