// Graphs: operations that one stream captured, done in the same order each time the graph is launched.
#pragma once

#include "stream.h"

struct GraphExec;

struct Kept {
    void* data;
    void (*launched)(void*);
    void (*done)(void*);
    void (*release)(void*);
};

bool graph_begin(Stream*);
// What the stream captured; null when it captured nothing that can be launched, or does not capture.
Graph* graph_end(Stream*, hipError_t* status);
void graph_add(Graph*, Operation*);
// Something that the graph's operations use: it hears of each launch, and when that is done, and is given back when
// nothing can launch them any more.
void graph_keep(Graph*, const Kept&);

Graph* graph_of(void* handle);
void graph_destroy(Graph*);

GraphExec* graph_instantiate(Graph*);
GraphExec* graph_exec_of(void* handle);
hipError_t graph_launch(GraphExec*, Stream*);
void graph_exec_destroy(GraphExec*);  // what was launched still runs
