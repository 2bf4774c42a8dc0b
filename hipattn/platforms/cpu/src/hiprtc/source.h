// From HIP source to host C++. The input is preprocessed text, so that every `__global__` and `__shared__` is there
// in full, whatever macro it came from. Two things change: a declaration of LDS becomes thread_local storage or a
// reference to the dynamic LDS, and a table of the kernels is added at the end. Line numbers stay.
#pragma once

#include "../../../abi/text.h"

struct Token {
    const char* at;
    size_t size;
    enum Kind : char { WORD, STRING, OTHER } kind;

    bool is(const char* s) const { return strlen(s) == size && !memcmp(at, s, size); }
    bool same(const Token& other) const { return size == other.size && !memcmp(at, other.at, size); }
};

struct KernelSource {
    Text name;           // "scale", "scale<float>" when specialised
    Text space;          // "a::b::", empty at global scope
    Text open, close;    // what reopens its namespaces
    Text template_head;  // "template <class T>", empty when it is none
    Text parameters;
    Text bounds;  // the expression in __launch_bounds__, empty without
    const char* at;
};

static bool is_word(char c) { return c == '_' || c == '$' || (c | 32) - 'a' + 0u < 26u || c - '0' + 0u < 10u || (c & 0x80); }

static void tokenize(const Text& source, Array<Token>& tokens) {
    const char* s = source.c_str();
    bool line_start = true;
    while (*s) {
        if (*s == '\n') {
            line_start = true;
            ++s;
        } else if (*s == ' ' || *s == '\t' || *s == '\r' || *s == '\f' || *s == '\v') {
            ++s;
        } else if (*s == '#' && line_start) {  // a line marker or a pragma
            while (*s && *s != '\n') ++s;
        } else {
            line_start = false;
            const char* from = s;
            Token::Kind kind = Token::OTHER;
            size_t prefix = strspn(s, "uUL8R");
            if (s[prefix] == '"' && prefix && s[prefix - 1] == 'R') {
                const char* open = s + prefix + 1;
                Text close = Text(")").add(open, strcspn(open, "(")).add("\"");
                const char* end = strstr(open, close.c_str());
                s = end ? end + close.size : s + strlen(s);
                kind = Token::STRING;
            } else if (s[prefix] == '"' || s[prefix] == '\'') {
                char quote = s[prefix];
                for (s += prefix + 1; *s && *s != quote && *s != '\n'; ++s)
                    if (*s == '\\' && s[1]) ++s;
                if (*s == quote) ++s;
                kind = Token::STRING;
            } else if (*s - '0' + 0u < 10u) {  // a number, with digit separators
                while (is_word(*s) || *s == '.' || (*s == '\'' && is_word(s[1]))) ++s;
            } else if (is_word(*s)) {
                while (is_word(*s)) ++s;
                kind = Token::WORD;
            } else {
                ++s;
            }
            tokens.push({from, (size_t)(s - from), kind});
        }
    }
}

class Rewriter {
  public:
    explicit Rewriter(const Text& source) : source(source) { tokenize(source, tokens); }
    ~Rewriter() {
        free(tokens.items);
        free(scopes.items);
        free(edits.items);
    }

    Text run() {
        size_t start = 0;  // of the statement
        for (size_t i = 0; i < tokens.count; ++i) {
            const Token& t = tokens.items[i];
            if (size_t end = attribute(i, "shared")) {
                shared(start, i, end);
                i = end - 1;
            } else if (t.is("__attribute__") && starts_with(token(i + 3).at, "amdgpu_")) {
                size_t end = matching(i + 1) + 1;  // known to the host's clang, which refuses it there
                replace(i, end, "");
                i = end - 1;
            } else if (t.is("(") && !in_body()) {
                i = matching(i);  // a parameter list or an attribute: no scope opens in it
            } else if (t.is("{")) {
                open(start, i);
                start = i + 1;
            } else if (t.is("}")) {
                if (scopes.count) scopes.remove(scopes.count - 1);
                start = i + 1;
            } else if (t.is(";")) {
                if (!in_body()) instantiation(start, i);
                start = i + 1;
            }
        }
        return apply();
    }

    List<KernelSource> kernels;      // definitions that make code
    List<KernelSource> templates;    // definitions that a name expression makes code of

  private:
    enum ScopeKind : char { NAMESPACE, LINKAGE, CLASS, BODY };
    struct Scope {
        ScopeKind kind;
        size_t from, to;  // tokens of the namespace's name
    };
    struct Edit {
        const char* at;
        size_t size;
        char* with;
    };

    const Text& source;
    Array<Token> tokens = {};
    Array<Scope> scopes = {};
    Array<Edit> edits = {};
    List<Text> dynamic;        // file-scope dynamic LDS: the declaration that each function which names it gets
    List<Text> dynamic_names;

    const Token& token(size_t i) const {
        static const Token none = {"", 0, Token::OTHER};
        return i < tokens.count ? tokens.items[i] : none;
    }
    bool in_body() const { return scopes.count && scopes.items[scopes.count - 1].kind == BODY; }

    // Index of the bracket that closes the one at i.
    size_t matching(size_t i) const {
        int depth = 0;
        for (; i < tokens.count; ++i) {
            const Token& t = token(i);
            if (t.is("(") || t.is("[") || t.is("{")) ++depth;
            if ((t.is(")") || t.is("]") || t.is("}")) && --depth == 0) return i;
        }
        return tokens.count;
    }
    // Index of the > that closes the < at i.
    size_t matching_angle(size_t i) const {
        int depth = 0;
        for (; i < tokens.count; ++i) {
            const Token& t = token(i);
            if (t.is("(")) i = matching(i);
            else if (t.is("<")) ++depth;
            else if (t.is(">") && --depth == 0) return i;
            else if (t.is(";") || t.is("{")) break;
        }
        return i;
    }
    // Past `__attribute__((name))` at i, or 0.
    size_t attribute(size_t i, const char* name) const {
        bool found = token(i).is("__attribute__") && token(i + 1).is("(") && token(i + 2).is("(") && token(i + 3).is(name) &&
                     token(i + 4).is(")") && token(i + 5).is(")");
        return found ? i + 6 : 0;
    }
    // Past an attribute of any kind at i, or i.
    size_t skip_attribute(size_t i) const {
        const Token& t = token(i);
        bool gnu = t.is("__attribute__") || t.is("__declspec") || t.is("alignas") || t.is("noexcept") || t.is("decltype");
        if (gnu && token(i + 1).is("(")) return matching(i + 1) + 1;
        if (t.is("[") && token(i + 1).is("[")) return matching(i) + 1;
        return i;
    }
    Text text(size_t from, size_t to) const {
        Text made;
        for (size_t i = from; i < to; ++i) made.add(i > from ? " " : "").add(token(i).at, token(i).size);
        return made;
    }
    void edit(const char* at, size_t size, const char* with) { edits.push({at, size, strdup(with)}); }
    void replace(size_t from, size_t to, const char* with) {  // tokens from .. to - 1, which keep their line breaks
        const char* at = token(from).at;
        const char* end = token(to - 1).at + token(to - 1).size;
        Text made(with);
        for (const char* s = at; s < end; ++s)
            if (*s == '\n') made.add("\n");
        edit(at, end - at, made.c_str());
    }

    // The brace at `i` opens a scope; the statement before it says which.
    void open(size_t start, size_t i) {
        Scope scope = {BODY, 0, 0};
        if (!in_body()) {
            size_t first = start + token(start).is("inline");
            if (token(first).is("namespace")) {
                scope = {NAMESPACE, first + 1, i};
            } else if (token(start).is("extern") && token(start + 1).kind == Token::STRING && i == start + 2) {
                scope = {LINKAGE, 0, 0};
            } else {
                size_t list = parameter_list(start, i);
                if (list < i) function(start, list, i);
                else if (is_class(start, i)) scope.kind = CLASS;
            }
        }
        scopes.push(scope);
    }
    bool is_class(size_t from, size_t to) const {
        for (size_t i = from; i < to; ++i) {
            if (token(i).is("=") || token(i).is("enum")) return false;
            if (token(i).is("template") && token(i + 1).is("<")) i = matching_angle(i + 1);
            else if (token(i).is("struct") || token(i).is("class") || token(i).is("union")) return true;
        }
        return false;
    }
    // Index of the parenthesis that opens a function's parameters, or `to` if the statement declares no function.
    size_t parameter_list(size_t from, size_t to) const {
        size_t i = from;
        while (token(i).is("template") && token(i + 1).is("<")) i = matching_angle(i + 1) + 1;
        while (i < to) {
            size_t next = skip_attribute(i);
            if (next != i) i = next;
            else if (token(i).is("=")) return to;
            else if (token(i).is("(")) return i;
            else ++i;
        }
        return to;
    }

    void function(size_t start, size_t list, size_t brace) {
        for (size_t i = start; i < brace; ++i)
            if (attribute(i, "global")) {
                kernel(start, list, brace);
                break;
            }
        size_t end = matching(brace);
        for (size_t d = 0; d < dynamic.count; ++d) {
            bool shadowed = false, named = false;
            for (size_t i = list; i < end; ++i)
                if (token(i).kind == Token::WORD && token(i).is(dynamic_names[d].c_str())) (i < brace ? shadowed : named) = true;
            // Its own braces let the body declare the name again.
            if (named && !shadowed) {
                edit(token(brace).at + 1, 0, Text(dynamic[d]).add("{").c_str());
                edit(token(end).at, 0, "}");
            }
        }
    }

    // `template __global__ void k<float>(float*);`, with or without the `__global__`.
    void instantiation(size_t start, size_t end) {
        if (!token(start).is("template") || token(start + 1).is("<")) return;
        size_t list = parameter_list(start + 1, end);
        if (list == end || !token(list - 1).is(">")) return;
        KernelSource made = describe(start, list, end);
        size_t n = strcspn(made.name.c_str(), "<");
        for (KernelSource& t : templates)
            if (t.name.size == n && !memcmp(t.name.c_str(), made.name.c_str(), n)) {
                kernels.add(made);
                return;
            }
    }

    void kernel(size_t start, size_t list, size_t brace) {
        for (size_t i = start; i < list; ++i)
            if (token(i).is("static")) replace(i, i + 1, "");  // hiprtc's kernels are external whatever they say
        KernelSource made = describe(start, list, brace);
        if (token(start).is("template") && !token(start + 2).is(">")) {
            made.template_head = text(start, matching_angle(start + 1) + 1);
            templates.add(made);
        } else {
            kernels.add(made);
        }
    }

    KernelSource describe(size_t start, size_t list, size_t end) const {
        KernelSource k;
        size_t name = list - 1;
        if (token(name).is(">"))  // back to the word before the matching <
            for (int depth = 0; name > start; --name) {
                if (token(name).is(">")) ++depth;
                if (token(name).is("<") && --depth == 0) {
                    --name;
                    break;
                }
            }
        k.name = text(name, list);
        k.at = token(name).at;
        k.parameters = text(list + 1, matching(list));
        for (size_t i = start; i < end; ++i)
            if (token(i).is("amdgpu_flat_work_group_size") && token(i + 1).is("(")) {
                size_t close = matching(i + 1), comma = i + 2;
                while (comma < close && !token(comma).is(",")) comma = token(comma).is("(") ? matching(comma) + 1 : comma + 1;
                k.bounds = text(comma + 1, close);
            }
        for (size_t s = 0; s < scopes.count; ++s) {
            const Scope& scope = scopes.items[s];
            if (scope.kind != NAMESPACE) continue;
            Text path = text(scope.from, scope.to);
            path.erase(" ");
            k.open.add("namespace ").add(path).add("{");
            k.close.add("}");
            if (path.size) k.space.add(path).add("::");
        }
        return k;
    }

    // A declaration with __shared__, whose attribute is at `at` .. `past` - 1.
    void shared(size_t start, size_t at, size_t past) {
        size_t end = past;
        while (end < tokens.count && !token(end).is(";") && !token(end).is("="))
            end = token(end).is("(") || token(end).is("[") || token(end).is("{") ? matching(end) + 1 : end + 1;
        size_t external = end, is_static = end;
        for (size_t i = start; i < end; ++i) {
            if (token(i).is("extern")) external = i;
            if (token(i).is("static")) is_static = i;
        }
        if (external == end) {
            replace(at, past, is_static == end ? "static thread_local" : "thread_local");
            return;
        }
        size_t name = past;
        for (size_t i = past; i < end && !(token(i).is("[") && !token(i + 1).is("["));) {
            size_t next = skip_attribute(i);
            if (next == i && token(i).kind == Token::WORD) name = i;
            i = next == i ? i + 1 : next;
        }
        if (in_body()) {
            replace(external, external + 1, "");
            replace(at, past, "");
            replace(name, name + 1, Text("(&").add(token(name).at, token(name).size).add(")").c_str());
            edit(token(end).at, 0, " = sim_dynamic_shared");
            return;
        }
        Text made;
        for (size_t i = start; i < end; ++i) {
            if (i == external || (i >= at && i < past)) continue;
            if (i == name) made.add("(&").add(token(i).at, token(i).size).add(")");
            else made.add(token(i).at, token(i).size).add(" ");
        }
        dynamic.add(made.add(" = sim_dynamic_shared;"));
        dynamic_names.add(Text().add(token(name).at, token(name).size));
        replace(start, end, "");
    }

    Text apply() {
        // Edits come almost in order: only a body's closing brace is announced early.
        for (size_t i = 1; i < edits.count; ++i)
            for (size_t j = i; j && edits.items[j].at < edits.items[j - 1].at; --j) {
                Edit e = edits.items[j];
                edits.items[j] = edits.items[j - 1];
                edits.items[j - 1] = e;
            }
        Text made;
        const char* at = source.c_str();
        for (Edit& e : edits) {
            made.add(at, e.at - at).add(e.with);
            at = e.at + e.size;
            free(e.with);
        }
        edits.count = 0;
        return made.add(at);
    }
};

// The sim_module table: one entry a kernel, then one a name expression.
static Text module_table(const Rewriter& source, const List<Text>& expressions, unsigned max_threads) {
    Text out, entries, addresses, names;
    out.add("\n# 1 \"kernel table\"\n");
    unsigned count = 0;
    for (const KernelSource& k : source.kernels) {
        unsigned same = 0;
        for (const KernelSource& other : source.kernels) same += other.name == k.name && other.space == k.space;
        out.add(k.open).add("using sim_entry_").format("%u = ::sim_entry<", count);
        if (same > 1) out.add("static_cast<void (*)(").add(k.parameters).add(")>(&").add(k.name).add(")");
        else out.add("&").add(k.name);
        out.format(">; enum : unsigned { sim_bounds_%u = unsigned(", count);
        if (k.bounds.size) out.add(k.bounds);
        else out.format("%u", max_threads);
        out.add(") };").add(k.close).add("\n");
        entries.add(k.space).format("sim_entry_%u::describe(", count).add(k.space).format("sim_bounds_%u), ", count);
        addresses.add("(const void*)").add(k.space).format("sim_entry_%u::address, ", count);
        ++count;
    }
    for (size_t t = 0; t < source.templates.count; ++t) {
        const KernelSource& k = source.templates[t];
        if (!k.bounds.size) continue;
        out.add(k.open).add(k.template_head).format("struct sim_template_bounds_%zu { enum : unsigned { value = unsigned(", t);
        out.add(k.bounds).add(") }; };").add(k.close).add("\n");
    }
    out.add("# 1 \"name expressions\"\n");
    for (const Text& given : expressions) {
        const char* e = given.c_str() + strspn(given.c_str(), "& \t");
        out.format("using sim_entry_%u = ::sim_entry<&%s>;\n", count, e);
        entries.format("sim_entry_%u::describe(", count);
        size_t name = strcspn(e, "<"), t = 0;
        const char* plain = e;
        for (const char* s = e; s < e + name; ++s)
            if (*s == ':') plain = s + 1;
        for (; t < source.templates.count; ++t) {
            const Text& n = source.templates[t].name;
            if (source.templates[t].bounds.size && n.size == (size_t)(e + name - plain) && !memcmp(n.c_str(), plain, n.size)) break;
        }
        if (e[name] && t < source.templates.count)
            entries.add(source.templates[t].space).format("sim_template_bounds_%zu%s::value), ", t, e + name);
        else
            entries.format("%u), ", max_threads);
        addresses.format("(const void*)sim_entry_%u::address, ", count);
        names.format("(const void*)sim_entry_%u::address, ", count);
        ++count;
    }
    out.add("# 1 \"kernel table\"\nstatic sim_kernel sim_kernels[] = {").add(entries).add("{}};\n");
    out.add("static const void* const sim_addresses[] = {").add(addresses).add("nullptr};\n");
    out.add("extern \"C\" { extern __attribute__((visibility(\"default\"))) const void* const sim_names[] = {");
    out.add(names).add("nullptr};\n");
    out.add("extern __attribute__((visibility(\"default\"))) sim_module_table sim_module = "
            "{SIM_ABI_VERSION, SIM_ARCH, 0, sim_kernels}; }\n");
    out.format("__attribute__((constructor)) static void sim_load() { "
               "sim_module.kernel_count = sim_name_kernels(sim_kernels, sim_addresses, %u); }\n", count);
    return out;
}
