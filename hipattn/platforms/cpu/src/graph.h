// Graphs: operations that one stream captured, done in the same order each time the graph is launched.
#pragma once

#include "stream.h"

struct GraphExec;

bool graph_begin(Stream*);
// What the stream captured; null when it captured nothing that can be launched, or does not capture.
Graph* graph_end(Stream*, hipError_t* status);
void graph_add(Graph*, Operation*);
// Memory that the graph's operations use, given back with `release` when nothing can launch them any more.
void graph_keep(Graph*, void* data, void (*release)(void*));

Graph* graph_of(void* handle);
void graph_destroy(Graph*);

GraphExec* graph_instantiate(Graph*);
GraphExec* graph_exec_of(void* handle);
hipError_t graph_launch(GraphExec*, Stream*);
void graph_exec_destroy(GraphExec*);  // what was launched still runs
