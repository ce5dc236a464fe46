// Source lines come from the debug information of the executable or library that the address is in (compile with -g),
// through binutils' addr2line. Without it a report has the address in that file instead.
#include "cuda_emulation/reporting.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace cuda_emulation {
namespace {

// The file that an address is in, and the address as that file numbers it.
std::pair<std::string, uintptr_t> in_module(uintptr_t pc) {
    Dl_info module;
    if (!dladdr(reinterpret_cast<void*>(pc), &module) || !module.dli_fname) return {"", pc};
    const uintptr_t base = reinterpret_cast<uintptr_t>(module.dli_fbase);
    const bool fixed = reinterpret_cast<const ElfW(Ehdr)*>(base)->e_type == ET_EXEC;
    std::string path = module.dli_fname;
    if (path.empty() || path[0] != '/') {  // the executable, as it was called
        char executable[4096];
        const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable);
        if (length > 0) path.assign(executable, static_cast<size_t>(length));
    }
    return {path, fixed ? pc : pc - base};
}

std::string quoted(const std::string& text) {
    std::string result = "'";
    for (const char c : text) result += c == '\'' ? "'\\''" : std::string(1, c);
    return result + "'";
}

// With links and dots resolved where the file is still there.
std::string folder_of(const std::string& file) {
    char* const resolved = realpath(file.c_str(), nullptr);
    const std::string path = resolved ? resolved : file;
    std::free(resolved);
    return path.substr(0, path.rfind('/') + 1);
}

// A kernel's line is the innermost one outside of this file's folder, where the headers are too.
bool of_the_emulator(const std::string& file) {
    static const std::string own = folder_of(__FILE__);
    return folder_of(file) == own;
}

Place parse(const std::vector<std::string>& lines) {
    Place place;
    for (size_t i = 0; i + 1 < lines.size(); i += 2) {
        place.function = lines[i];
        const size_t colon = lines[i + 1].rfind(':');
        if (colon == std::string::npos || lines[i + 1][0] == '?') continue;
        const std::string file = lines[i + 1].substr(0, colon);
        if (!place.file.empty() || of_the_emulator(file)) continue;
        place.file = file;
        place.line = std::atoi(lines[i + 1].c_str() + colon + 1);
    }
    return place;
}

std::string hexadecimal(uintptr_t number) {
    char text[2 + 2 * sizeof number + 1];
    std::snprintf(text, sizeof text, "0x%zx", static_cast<size_t>(number));
    return text;
}

std::string to_string(const Place& place) {
    return place.file.empty() ? place.module : place.file + ":" + std::to_string(place.line);
}

// A return address belongs to the call before it.
uintptr_t call_of(Site site) { return site.return_address - 1; }

}  // namespace

const char* name_of(Kind kind) {
    static const char* const names[] = {"out_of_bounds",        "misaligned",        "write_to_constant",
                                        "uninitialised_shared", "pending_copy",      "shared_race",
                                        "global_race",          "divergent_barrier", "missing_participant",
                                        "undefined_result",     "invalid_launch"};
    return names[static_cast<int>(kind)];
}

std::string to_string(const Report& report) {
    const auto triple = [](uint3 index) {
        return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
    };
    return report.file + ":" + std::to_string(report.line) + ": " + name_of(report.kind) + ": " + report.text + " [" +
           report.kernel + ", block " + triple(report.block) + ", thread " + triple(report.thread) + "]";
}

void Reporter::add(Kind kind, const void* kernel, uint3 block, uint3 thread, Site site, std::string text, Site other) {
    constexpr size_t enough = 256;
    if (found_.size() < enough && known_.emplace(kind, site.return_address, site.line).second)
        found_.push_back({kind, kernel, block, thread, site, std::move(text), other});
}

void Reporter::look_up(const std::set<uintptr_t>& addresses) {
    std::map<std::string, std::vector<std::pair<uintptr_t, uintptr_t>>> modules;
    for (const uintptr_t pc : addresses) {
        if (places_.count(pc) != 0) continue;
        const auto [path, offset] = in_module(pc);
        modules[path].emplace_back(pc, offset);
        places_[pc].module = path + " " + hexadecimal(offset);
    }
    for (const auto& [path, pairs] : modules) {
        if (path.empty()) continue;
        std::string command = "addr2line -a -i -f -C -e " + quoted(path);
        for (const auto& pair : pairs) command += " " + hexadecimal(pair.second);
        FILE* const output = popen((command + " 2>/dev/null").c_str(), "r");
        if (!output) continue;
        std::vector<std::vector<std::string>> answers;
        char* text = nullptr;
        size_t room = 0;
        for (ssize_t length; (length = getline(&text, &room, output)) > 0;) {
            const std::string line(text, static_cast<size_t>(length - (text[length - 1] == '\n')));
            if (line.compare(0, 2, "0x") == 0)
                answers.emplace_back();
            else if (!answers.empty())
                answers.back().push_back(line);
        }
        std::free(text);
        pclose(output);
        for (size_t i = 0; i < answers.size() && i < pairs.size(); ++i) {
            Place& place = places_[pairs[i].first];
            const std::string module = place.module;
            place = parse(answers[i]);
            place.module = module;
        }
    }
}

Place Reporter::place_of(Site site) const {
    if (site.return_address == 0) return {};
    Place place = places_.at(call_of(site));
    if (site.line != 0) place.line = site.line;
    return place;
}

std::string Reporter::name_of(const void* kernel) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(kernel);
    look_up({address});
    return places_[address].function;
}

std::vector<Report> Reporter::take() {
    std::set<uintptr_t> addresses;
    for (const Found& found : found_) {
        addresses.insert(reinterpret_cast<uintptr_t>(found.kernel));
        for (const Site& site : {found.site, found.other})
            if (site.return_address != 0) addresses.insert(call_of(site));
    }
    look_up(addresses);
    std::vector<Report> reports;
    std::set<std::pair<Kind, std::string>> lines;  // several instructions may stand in one
    for (Found& found : found_) {
        const std::string& kernel = places_[reinterpret_cast<uintptr_t>(found.kernel)].function;
        const Place place = place_of(found.site), other = place_of(found.other);
        if (!lines.emplace(found.kind, kernel + to_string(place)).second) continue;
        std::string text = std::move(found.text);
        if (place.file.empty() && !place.module.empty()) text += ", at " + place.module;
        if (!other.module.empty()) text += " at " + to_string(other);
        reports.push_back({found.kind, kernel, found.block, found.thread, place.file, place.line, std::move(text)});
    }
    found_.clear();
    known_.clear();
    return reports;
}

}  // namespace cuda_emulation
