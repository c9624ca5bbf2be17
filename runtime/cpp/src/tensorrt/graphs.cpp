#include "graphs.hpp"

#include <exception>

namespace fastsam2::gpu {

namespace {

std::vector<Shape> shapes_of(std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) {
  std::vector<Shape> shapes;
  for (const std::span<const NamedTensor> side : {inputs, outputs}) {
    for (const NamedTensor& given : side) {
      shapes.push_back(given.tensor.shape());
    }
  }
  return shapes;
}

}  // namespace

template <typename Value>
Value* GraphEngines::Recent<Value>::find(const Key& key) {
  const auto found = at.find(key);
  if (found == at.end()) {
    return nullptr;
  }
  values.splice(values.begin(), values, found->second);
  return &found->second->second;
}

template <typename Value>
Value& GraphEngines::Recent<Value>::insert(const Key& key, Value value) {
  values.emplace_front(key, std::move(value));
  at[key] = values.begin();
  return values.front().second;
}

template <typename Value>
void GraphEngines::Recent<Value>::erase(const Key& key) {
  const auto found = at.find(key);
  values.erase(found->second);
  at.erase(found);
}

GraphEngines::~GraphEngines() {
  try {
    gpu_->synchronize();
  } catch (const Error&) {  // a context that is lost runs nothing any more
  }
}

void GraphEngines::enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) {
  if (refused_.contains(role)) {
    inner_->enqueue(role, inputs, outputs);
    return;
  }
  Key key{static_cast<std::int64_t>(role)};
  for (const std::span<const NamedTensor> side : {inputs, outputs}) {
    for (const auto& [name, tensor] : side) {
      key.push_back(reinterpret_cast<std::intptr_t>(tensor.data()));
      key.insert(key.end(), tensor.shape().begin(), tensor.shape().end());
    }
  }
  if (inner_->activation_bytes() != activations_) {  // the shared memory of the engines moved
    forget();
  }
  std::unique_ptr<Recording>* known = recordings_.find(key);
  Recording* recording = known == nullptr ? nullptr : known->get();
  if (recording == nullptr) {
    const std::vector<Shape> shapes = shapes_of(inputs, outputs);
    if (often(key) && shapes_[role] == shapes) {
      recording = record(role, key, inputs, outputs);
    }
    if (recording == nullptr) {
      run(role, shapes, inputs, outputs);
      return;
    }
  }
  recording->launch();
  ++launched_;
}

void GraphEngines::run(GraphRole role, const std::vector<Shape>& shapes, std::span<const NamedTensor> inputs,
                       std::span<const NamedTensor> outputs) {
  std::vector<Shape>& own = shapes_[role];
  own.clear();  // until this went well
  inner_->enqueue(role, inputs, outputs);
  own = shapes;
}

bool GraphEngines::often(const Key& key) {
  int* count = seen_.find(key);
  if (count == nullptr) {
    count = &seen_.insert(key, 0);
    if (seen_.values.size() > 4 * kMostRecordings) {
      const Key oldest = seen_.values.back().first;
      seen_.erase(oldest);
    }
  }
  return ++*count > kRecordAfter;
}

// None where it cannot be recorded, which is then remembered.
Recording* GraphEngines::record(GraphRole role, const Key& key, std::span<const NamedTensor> inputs,
                                std::span<const NamedTensor> outputs) {
  std::string failed;
  std::exception_ptr other;
  std::unique_ptr<Recording> made;
  gpu_->begin_recording();
  try {
    inner_->enqueue(role, inputs, outputs);
  } catch (const BackendError& error) {
    failed = error.what();
  } catch (...) {  // recording has to end whatever happens
    other = std::current_exception();
  }
  try {
    made = gpu_->end_recording();
  } catch (const BackendError& error) {
    failed = failed.empty() ? error.what() : failed;
  }
  if (other) {
    std::rethrow_exception(other);
  }
  if (!failed.empty()) {
    refused_[role] = failed;
    return nullptr;
  }
  seen_.erase(key);
  Recording* recording = recordings_.insert(key, std::move(made)).get();
  ++recorded_;
  if (recordings_.values.size() > kMostRecordings) {
    gpu_->synchronize();
    const Key oldest = recordings_.values.back().first;
    recordings_.erase(oldest);
  }
  return recording;
}

void GraphEngines::forget() {
  if (!recordings_.values.empty()) {
    gpu_->synchronize();
  }
  recordings_ = {};
  seen_ = {};
  activations_ = inner_->activation_bytes();
}

}  // namespace fastsam2::gpu
