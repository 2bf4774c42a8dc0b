// Graphs: what a stream captured, launched as one.
#include "status.h"

EXPORT hipError_t hipThreadExchangeStreamCaptureMode(int* mode) {
    ENTER();
    REQUIRE(mode, hipErrorInvalidValue);
    RETURN(cuThreadExchangeStreamCaptureMode(mode));
}

EXPORT hipError_t hipStreamBeginCapture(CUstream stream, int mode) {
    ENTER();
    RETURN(cuStreamBeginCapture_v2(stream, mode));
}

EXPORT hipError_t hipStreamEndCapture(CUstream stream, CUgraph* graph) {
    ENTER();
    REQUIRE(graph, hipErrorInvalidValue);
    RETURN(cuStreamEndCapture(stream, graph));
}

EXPORT hipError_t hipStreamIsCapturing(CUstream stream, int* status_out) {
    ENTER();
    REQUIRE(status_out, hipErrorInvalidValue);
    RETURN(cuStreamIsCapturing(stream, status_out));
}

EXPORT hipError_t hipGraphCreate(CUgraph* graph, unsigned flags) {
    ENTER();
    REQUIRE(graph, hipErrorInvalidValue);
    RETURN(cuGraphCreate(graph, flags));
}

EXPORT hipError_t hipGraphDestroy(CUgraph graph) {
    ENTER();
    RETURN(cuGraphDestroy(graph));
}

EXPORT hipError_t hipGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
    ENTER();
    REQUIRE(count, hipErrorInvalidValue);
    RETURN(cuGraphGetNodes(graph, nodes, count));
}

static hipError_t instantiate(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    ENTER();
    REQUIRE(exec && graph, hipErrorInvalidValue);
    RETURN(cuGraphInstantiateWithFlags(exec, graph, flags));
}

// CUDA tells no node that failed, and writes no log.
EXPORT hipError_t hipGraphInstantiate(CUgraphExec* exec, CUgraph graph, CUgraphNode* failed, char* log, size_t size) {
    if (failed) *failed = nullptr;
    if (log && size) *log = 0;
    return instantiate(exec, graph, 0);
}

EXPORT hipError_t hipGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    return instantiate(exec, graph, flags);
}

EXPORT hipError_t hipGraphUpload(CUgraphExec exec, CUstream stream) {
    ENTER();
    RETURN(cuGraphUpload(exec, stream));
}

EXPORT hipError_t hipGraphLaunch(CUgraphExec exec, CUstream stream) {
    ENTER();
    RETURN(cuGraphLaunch(exec, stream));
}

EXPORT hipError_t hipGraphExecDestroy(CUgraphExec exec) {
    ENTER();
    RETURN(cuGraphExecDestroy(exec));
}
