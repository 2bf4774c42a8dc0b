// HIP's entry points for graphs: captured from one stream, launched, destroyed.
#include "api.h"
#include "graph.h"

enum CaptureMode : int { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
enum CaptureStatus : int { NONE = 0, ACTIVE = 1 };

EXPORT hipError_t hipStreamBeginCapture(Handle handle, int mode) {
    ENTER_STREAM(hipStreamBeginCapture, handle);
    REQUIRE(mode >= GLOBAL && mode <= RELAXED, hipErrorInvalidValue);
    REQUIRE(!stream->is_null, hipErrorStreamCaptureUnsupported);
    return leave(graph_begin(stream) ? hipSuccess : hipErrorIllegalState);
}

EXPORT hipError_t hipStreamEndCapture(Handle handle, Handle* out) {
    ENTER(hipStreamEndCapture);
    Stream* stream = stream_of(handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REQUIRE(out, hipErrorInvalidValue);
    hipError_t status;
    *out = graph_end(stream, &status);
    return leave(status);
}

EXPORT hipError_t hipStreamIsCapturing(Handle handle, int* out) {
    ENTER_STREAM(hipStreamIsCapturing, handle);
    REQUIRE(out, hipErrorInvalidValue);
    *out = stream_capture(stream) ? ACTIVE : NONE;
    return hipSuccess;
}

EXPORT hipError_t hipGraphDestroy(Handle handle) {
    ENTER(hipGraphDestroy);
    Graph* graph = graph_of(handle);
    REQUIRE(graph, hipErrorInvalidValue);
    graph_destroy(graph);
    return hipSuccess;
}

EXPORT hipError_t hipGraphInstantiateWithFlags(Handle* out, Handle handle, unsigned long long flags) {
    ENTER_DEVICE(hipGraphInstantiateWithFlags);
    Graph* graph = graph_of(handle);
    REQUIRE(out && graph && !flags, hipErrorInvalidValue);
    *out = graph_instantiate(graph);
    return hipSuccess;
}

EXPORT hipError_t hipGraphLaunch(Handle handle, Handle stream_handle) {
    ENTER_STREAM(hipGraphLaunch, stream_handle);
    GraphExec* exec = graph_exec_of(handle);
    REQUIRE(exec, hipErrorInvalidValue);
    return leave(graph_launch(exec, stream));
}

EXPORT hipError_t hipGraphExecDestroy(Handle handle) {
    ENTER(hipGraphExecDestroy);
    GraphExec* exec = graph_exec_of(handle);
    REQUIRE(exec, hipErrorInvalidValue);
    graph_exec_destroy(exec);
    return hipSuccess;
}

// For the platform's other libraries.

EXPORT bool sim_capture_keep(Handle handle, void* data, void (*launched)(void*), void (*done)(void*),
                             void (*release)(void*)) {
    Stream* stream = stream_of(handle);
    Graph* graph = stream ? stream_capture(stream) : nullptr;
    if (graph) graph_keep(graph, {data, launched, done, release});
    return graph;
}
