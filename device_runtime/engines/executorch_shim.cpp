// ExecuTorch behind a C interface, for ctypes: over the libraries in ExecuTorch's own wheel, without Python and torch.
// executorch_build.py compiles it; executorch.py calls it. A function that fails says why in shim_error().

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

namespace executorch::extension::threadpool {
// The wheel has these in a library and not in a header.
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::MethodMeta;
using executorch::runtime::PalImpl;
using executorch::runtime::Program;
using executorch::runtime::Result;
using executorch::runtime::TensorInfo;

thread_local std::string message;

// Errors are kept for the caller and not printed. The first of a call is the cause, the others its consequences.
void keep_first_error(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* text, size_t length) {
  if (message.empty() && (level == kError || level == kFatal)) {
    message.assign(text, length);
  }
}

// Begins a call. ExecuTorch's Python API takes the errors for itself where it is loaded after this.
void begin() {
  message.clear();
  if (executorch::runtime::get_pal_impl()->emit_log_message != keep_first_error) {
    executorch::runtime::register_pal(PalImpl::create(keep_first_error, __FILE__));
  }
}

bool failed(Error error) {
  if (error != Error::Ok && message.empty()) {
    message = executorch::runtime::to_string(error);
  }
  return error != Error::Ok;
}

using Shape = std::vector<executorch::aten::SizesType>;

struct Graph {
  Module module;
  std::vector<Shape> inputs, outputs;
};

bool add_shape(std::vector<Shape>& shapes, const Result<TensorInfo>& info) {
  if (failed(info.error())) {
    return false;
  }
  if (info->scalar_type() != ScalarType::Float) {
    message = "it has an input or output that is not float32";
    return false;
  }
  shapes.emplace_back(info->sizes().begin(), info->sizes().end());
  return true;
}

bool prepare(Graph& graph) {
  if (failed(graph.module.load(Program::Verification::InternalConsistency)) || failed(graph.module.load_forward())) {
    return false;
  }
  const Result<MethodMeta> meta = graph.module.method_meta("forward");
  if (failed(meta.error())) {
    return false;
  }
  for (size_t i = 0; i < meta->num_inputs(); ++i) {
    if (!add_shape(graph.inputs, meta->input_tensor_meta(i))) {
      return false;
    }
  }
  for (size_t i = 0; i < meta->num_outputs(); ++i) {
    if (!add_shape(graph.outputs, meta->output_tensor_meta(i))) {
      return false;
    }
  }
  return true;
}

const std::vector<Shape>& shapes(const Graph& graph, bool outputs) {
  return outputs ? graph.outputs : graph.inputs;
}

}  // namespace

extern "C" {

// Why this thread's last call failed.
const char* shim_error() {
  return message.c_str();
}

// Sets the number of threads of the process's pool, that of the caller included.
bool shim_set_threads(uint32_t threads) {
  begin();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  return pool && pool->_unsafe_reset_threadpool(threads);
}

// Loads the method "forward" of a .pte file, with a .ptd file of constants or null. Both are mapped. Null on failure.
Graph* shim_load(const char* program, const char* constants) {
  begin();
  const auto mode = Module::LoadMode::Mmap;
  auto* graph = constants ? new Graph{Module(program, constants, mode)} : new Graph{Module(program, mode)};
  if (!prepare(*graph)) {
    delete graph;
    return nullptr;
  }
  return graph;
}

void shim_free(Graph* graph) {
  delete graph;
}

size_t shim_count(const Graph* graph, bool outputs) {
  return shapes(*graph, outputs).size();
}

size_t shim_rank(const Graph* graph, bool outputs, size_t index) {
  return shapes(*graph, outputs)[index].size();
}

int32_t shim_size(const Graph* graph, bool outputs, size_t index, size_t dimension) {
  return shapes(*graph, outputs)[index][dimension];
}

// Runs the graph on arrays of its shapes: inputs are read in place, results copied out.
bool shim_run(Graph* graph, void* const* inputs, void* const* outputs) {
  begin();
  std::vector<TensorPtr> tensors;
  std::vector<EValue> values;
  for (size_t i = 0; i < graph->inputs.size(); ++i) {
    tensors.push_back(executorch::extension::from_blob(inputs[i], graph->inputs[i]));
    values.emplace_back(*tensors.back());
  }
  const auto results = graph->module.forward(values);
  if (failed(results.error())) {
    return false;
  }
  for (size_t i = 0; i < graph->outputs.size(); ++i) {
    const auto& result = (*results)[i].toTensor();
    std::memcpy(outputs[i], result.const_data_ptr(), result.nbytes());
  }
  return true;
}

}  // extern "C"
