#include "graph.h"

#include "api.h"

struct Graph {
    Array<Operation*> operations;
    Array<Kept> kept;
    Device* device;
    bool spoilt;
    int owners;  // its handle, what was instantiated from it, and launches that are not done
};

struct GraphExec {
    Graph* graph;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Array<Graph*> graphs;
static Array<GraphExec*> execs;

static void drop(Graph* graph) {
    if (__atomic_sub_fetch(&graph->owners, 1, __ATOMIC_ACQ_REL)) return;
    for (Operation* op : graph->operations) {
        free(op->after.items);
        free(op);
    }
    for (Kept& kept : graph->kept) kept.release(kept.data);
    free(graph->operations.items);
    free(graph->kept.items);
    free(graph);
}

bool graph_begin(Stream* stream) {
    Graph* graph = make<Graph>();
    graph->device = stream->device;
    graph->owners = 1;
    if (stream_set_capture(stream, graph)) return true;
    drop(graph);
    return false;
}

Graph* graph_end(Stream* stream, hipError_t* status) {
    Graph* graph = stream_capture(stream);
    *status = graph ? hipSuccess : hipErrorIllegalState;
    if (!graph) return nullptr;
    stream_set_capture(stream, nullptr);
    if (graph->spoilt) {
        *status = hipErrorStreamCaptureInvalidated;
        drop(graph);
        return nullptr;
    }
    Lock lock(mutex);
    graphs.push(graph);
    return graph;
}

bool refuses_capture(Stream* stream) {
    Graph* graph = stream_capture(stream);
    if (graph) graph->spoilt = true;
    return graph;
}

void graph_add(Graph* graph, Operation* op) { graph->operations.push(op); }
void graph_keep(Graph* graph, const Kept& kept) { graph->kept.push(kept); }

Graph* graph_of(void* handle) {
    Lock lock(mutex);
    for (Graph* graph : graphs)
        if (graph == handle) return graph;
    return nullptr;
}

void graph_destroy(Graph* graph) {
    {
        Lock lock(mutex);
        graphs.remove_item(graph);
    }
    drop(graph);
}

GraphExec* graph_instantiate(Graph* graph) {
    GraphExec* exec = make<GraphExec>();
    exec->graph = graph;
    __atomic_add_fetch(&graph->owners, 1, __ATOMIC_RELAXED);
    Lock lock(mutex);
    execs.push(exec);
    return exec;
}

GraphExec* graph_exec_of(void* handle) {
    Lock lock(mutex);
    for (GraphExec* exec : execs)
        if (exec == handle) return exec;
    return nullptr;
}

struct GraphOperation : Operation {
    Graph* graph;
};

hipError_t graph_launch(GraphExec* exec, Stream* stream) {
    if (exec->graph->device != stream->device) return hipErrorInvalidValue;
    auto op = make<GraphOperation>();
    op->graph = exec->graph;
    op->always = true;  // lets go of the graph
    __atomic_add_fetch(&op->graph->owners, 1, __ATOMIC_RELAXED);
    op->run = [](Operation* self) {
        Graph* graph = static_cast<GraphOperation*>(self)->graph;
        for (Operation* each : graph->operations)
            if (!fault_of(graph->device)) each->run(each);
        for (Kept& kept : graph->kept) kept.done(kept.data);
        drop(graph);
    };
    for (Kept& kept : exec->graph->kept) kept.launched(kept.data);
    stream_submit(stream, op);
    return hipSuccess;
}

void graph_exec_destroy(GraphExec* exec) {
    {
        Lock lock(mutex);
        execs.remove_item(exec);
    }
    drop(exec->graph);
    free(exec);
}
