// choice_block: a chain of blocks, tensors in and out, run by the kernels one block after another. Every output is
// allocated by the caller.
#include "bindings/bindings.h"
#include "bindings/choice_block_reading.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

using Maps = std::vector<Tensor>;

Maps read_maps(const py::tuple& objects, const char* name, size_t count, const Tensor& x) {
    if (objects.size() != count)
        throw py::value_error(std::string(name) + ": expected " + std::to_string(count) + " tensors");
    Maps maps;
    for (const py::handle object : objects) {
        maps.push_back(read_tensor(object, name));
        check_same_dtype(maps.back(), name, x, "x");
    }
    return maps;
}

// Points each block at its x, the y of the one before it.
template <typename T>
void connect(std::vector<ChoiceBlock<T>>& blocks, const Maps& ys) {
    for (size_t i = 0; i < ys.size(); ++i) {
        const Tensor expected = output_of(blocks[i], ys[i].dtype);
        check_shape(ys[i], "y", {expected.shape[0], expected.shape[1], expected.shape[2], expected.shape[3]});
        check_dense(ys[i], "y");
        if (i + 1 < blocks.size()) blocks[i + 1].x = ys[i].as<T>();
    }
}

template <typename T>
void place_saved(std::vector<ChoiceBlock<T>>& blocks, const Maps& saved) {
    for (size_t i = 0; i < blocks.size(); ++i) {
        check_shape(saved[i], "saved", {kept_size(blocks[i])});
        check_contiguous(saved[i], "saved");
        place_outputs(blocks[i], saved[i].as<T>());
    }
}

std::vector<int> read_threads(const py::tuple& objects, size_t count) {
    if (objects.size() != count) throw py::value_error("threads: expected one number a block");
    std::vector<int> threads;
    for (const py::handle object : objects)
        threads.push_back(static_cast<int>(std::clamp<int64_t>(py::cast<int64_t>(object), 1, 1024)));
    return threads;
}

// Everything is kept for backward: of each block y and, in `saved`, the outputs of its convolutions.
void forward(py::handle x_object, py::tuple bank, py::tuple plans, py::tuple y_objects, py::tuple saved_objects,
             py::handle statistics_object, bool training, double eps, Isa isa, py::tuple thread_counts) {
    const ChainOptions options{training, eps, isa};
    const Tensor x = read_tensor(x_object, "x"), statistics = read_tensor(statistics_object, "statistics");
    check_same_dtype(statistics, "statistics", x, "x");
    const Maps ys = read_maps(y_objects, "y", plans.size(), x),
               saved = read_maps(saved_objects, "saved", plans.size(), x);
    const std::vector<int> threads = read_threads(thread_counts, plans.size());
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        std::vector<ChoiceBlock<T>> blocks = read_blocks<T>(x, bank, plans, options);
        connect(blocks, ys);
        place_saved(blocks, saved);
        place_statistics(blocks, statistics);
        const Isa own = isa_for<T>(options);
        size_t bytes = 0;
        for (size_t i = 0; i < blocks.size(); ++i)
            bytes = std::max(bytes, choice_block_forward_workspace(own, blocks[i], threads[i]));
        const Workspace workspace(bytes);
        py::gil_scoped_release release;
        for (size_t i = 0; i < blocks.size(); ++i)
            choice_block_forward(own, blocks[i], ys[i].as<T>(), workspace.get(), threads[i]);
    });
}

// Nothing is kept but the last y. Returns how many blocks took the pass that holds a piece of images in cache.
int64_t run(py::handle x_object, py::tuple bank, py::tuple plans, py::handle y_object, py::handle statistics_object,
            bool training, double eps, Isa isa, py::tuple thread_counts) {
    const ChainOptions options{training, eps, isa};
    const Tensor x = read_tensor(x_object, "x"), statistics = read_tensor(statistics_object, "statistics");
    const Tensor y = read_tensor(y_object, "y");
    check_same_dtype(statistics, "statistics", x, "x");
    check_same_dtype(y, "y", x, "x");
    const std::vector<int> threads = read_threads(thread_counts, plans.size());
    int64_t in_pieces = 0;
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        std::vector<ChoiceBlock<T>> blocks = read_blocks<T>(x, bank, plans, options);
        place_statistics(blocks, statistics);
        const Isa own = isa_for<T>(options);
        const auto pieces = [&](const ChoiceBlock<T>& block) {
            return !training && choice_block_inference_fits(block);
        };
        size_t bytes = 0;
        int64_t map = 0, kept = 0;
        for (size_t i = 0; i < blocks.size(); ++i) {
            const Tensor out = output_of(blocks[i], x.dtype);
            if (i + 1 < blocks.size()) map = std::max(map, out.shape[0] * out.shape[1] * out.shape[2] * out.shape[3]);
            if (pieces(blocks[i])) {
                bytes = std::max(bytes, choice_block_inference_workspace(own, blocks[i], threads[i]));
            } else {
                kept = std::max(kept, kept_size(blocks[i]));
                bytes = std::max(bytes, choice_block_forward_workspace(own, blocks[i], threads[i]));
            }
        }
        constexpr int64_t line = 64 / sizeof(T);
        map = (map + line - 1) / line * line, kept = (kept + line - 1) / line * line;
        const Workspace workspace(static_cast<size_t>(2 * map + kept) * sizeof(T) + bytes);
        T* const maps = static_cast<T*>(workspace.get());
        T* const scratch = maps + 2 * map + kept;
        py::gil_scoped_release release;
        for (size_t i = 0; i < blocks.size(); ++i) {
            if (i) blocks[i].x = maps + (i - 1) % 2 * map;
            T* const to = i + 1 < blocks.size() ? maps + i % 2 * map : y.as<T>();
            if (pieces(blocks[i])) {
                choice_block_inference(own, blocks[i], to, scratch, threads[i]);
                ++in_pieces;
            } else {
                place_outputs(blocks[i], maps + 2 * map);
                choice_block_forward(own, blocks[i], to, scratch, threads[i]);
            }
        }
    });
    return in_pieces;
}

// gradients: in the order of the bank, None for those not wanted. Returns of each block whether there is one.
template <typename T>
std::vector<bool> read_gradients(std::vector<ChoiceBlock<T>>& blocks, const py::tuple& plans,
                                 const py::tuple& gradients, Dtype dtype) {
    Entries from(gradients, "gradients");
    std::vector<bool> wanted;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const Plan plan(plans[i]);
        Entries affine(plan.affine, "affine");
        bool any = false;
        for_layers(blocks[i], [&](ConvNorm<T>& layer, int64_t) {
            if (const py::handle object = from.next(); !object.is_none()) {
                const Tensor dweight = read_tensor(object, "dweight");
                if (dweight.dtype != dtype) throw py::type_error("dweight: dtype differs from that of x");
                const int64_t kernel = layer.kernel;
                check_shape(dweight, "dweight", {layer.outputs, layer.depthwise ? 1 : layer.inputs, kernel, kernel});
                check_contiguous(dweight, "dweight");
                layer.dweight = dweight.as<T>();
            }
            if (py::cast<bool>(affine.next())) {
                layer.dgamma = const_cast<T*>(optional_vector<T>(from.next(), "dgamma", layer.outputs, dtype));
                layer.dbeta = const_cast<T*>(optional_vector<T>(from.next(), "dbeta", layer.outputs, dtype));
            }
            any = any || layer.dweight || layer.dgamma || layer.dbeta;
        });
        wanted.push_back(any);
    }
    from.check_used();
    return wanted;
}

// ys: of all blocks but the last. Returns how many blocks it went back through.
int64_t backward(py::handle dy_object, py::handle x_object, py::tuple bank, py::tuple plans, py::tuple y_objects,
                 py::tuple saved_objects, py::handle statistics_object, py::handle dx_object, py::tuple gradients,
                 bool training, double eps, Isa isa, py::tuple thread_counts) {
    const ChainOptions options{training, eps, isa};
    const Tensor dy = read_tensor(dy_object, "dy"), x = read_tensor(x_object, "x");
    const Tensor statistics = read_tensor(statistics_object, "statistics");
    check_same_dtype(dy, "dy", x, "x");
    check_same_dtype(statistics, "statistics", x, "x");
    if (plans.size() < 1) throw py::value_error("plans: expected at least one");
    const Maps ys = read_maps(y_objects, "y", plans.size() - 1, x),
               saved = read_maps(saved_objects, "saved", plans.size(), x);
    const std::vector<int> threads = read_threads(thread_counts, plans.size());
    int64_t gone_through = 0;
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        std::vector<ChoiceBlock<T>> blocks = read_blocks<T>(x, bank, plans, options);
        connect(blocks, ys);
        place_saved(blocks, saved);
        place_statistics(blocks, statistics);
        const std::vector<bool> wanted = read_gradients(blocks, plans, gradients, x.dtype);
        const Tensor last = output_of(blocks.back(), x.dtype);
        check_shape(dy, "dy", {last.shape[0], last.shape[1], last.shape[2], last.shape[3]});
        const NhwcStrides strides = nhwc_strides(dy, "dy");
        if (strides.h != dy.shape[3] * strides.w || strides.n != dy.shape[2] * strides.h)
            throw py::value_error("dy: expected pixels at one distance");
        T* dx = nullptr;
        if (!dx_object.is_none()) {
            const Tensor tensor = read_tensor(dx_object, "dx");
            check_same_dtype(tensor, "dx", x, "x");
            check_shape(tensor, "dx", {x.shape[0], x.shape[1], x.shape[2], x.shape[3]});
            check_dense(tensor, "dx");
            dx = tensor.as<T>();
        }
        // Blocks before the first that anything is wanted of are left out.
        size_t first = 0;
        while (!dx && first < blocks.size() && !wanted[first]) ++first;
        const Isa own = isa_for<T>(options);
        T placeholder{};  // counting asks only whether there is a gradient of the input
        size_t bytes = 0;
        int64_t map = 0;
        for (size_t i = first; i < blocks.size(); ++i) {
            T* const to = i > first ? &placeholder : i ? nullptr : dx;
            bytes = std::max(bytes, choice_block_backward_workspace(own, blocks[i], to, threads[i]));
            if (i > first)
                map = std::max(map, blocks[i].batch * blocks[i].in_height * blocks[i].in_width * blocks[i].inputs);
        }
        constexpr int64_t line = 64 / sizeof(T);
        map = (map + line - 1) / line * line;
        const Workspace workspace(static_cast<size_t>(2 * map) * sizeof(T) + bytes);
        T* const maps = static_cast<T*>(workspace.get());
        const T* from = dy.as<T>();
        int64_t stride = strides.w;
        py::gil_scoped_release release;
        for (size_t i = blocks.size(); i-- > first;) {
            T* const to = i > first ? maps + i % 2 * map : i ? nullptr : dx;
            choice_block_backward(own, blocks[i], from, stride, to, maps + 2 * map, threads[i]);
            from = to, stride = blocks[i].inputs;
            ++gone_through;
        }
    });
    return gone_through;
}

}  // namespace

void bind_choice_block(py::module_& module) {
    module.def("choice_block_forward", &forward, py::arg("x"), py::arg("bank"), py::arg("plans"), py::arg("y"),
               py::arg("saved"), py::arg("statistics"), py::arg("training"), py::arg("eps"), py::arg("isa"),
               py::arg("threads"));
    module.def("choice_block_run", &run, py::arg("x"), py::arg("bank"), py::arg("plans"), py::arg("y"),
               py::arg("statistics"), py::arg("training"), py::arg("eps"), py::arg("isa"), py::arg("threads"));
    module.def("choice_block_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("bank"), py::arg("plans"),
               py::arg("y"), py::arg("saved"), py::arg("statistics"), py::arg("dx"), py::arg("gradients"),
               py::arg("training"), py::arg("eps"), py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
