#include "cuda_emulation/between_blocks.h"

#include <algorithm>

namespace cuda_emulation {

void BetweenBlocks::start_launch(size_t blocks) {
    blocks_ = blocks;
    points_.assign(1, Point());
    by_address_.clear();
}

void BetweenBlocks::start_block() {
    all_.clear();
    recent_.clear();
}

void BetweenBlocks::pass_barrier() {
    for (const Recent& each : recent_) join(all_, each.told);
    recent_.clear();
}

void BetweenBlocks::atomic(uintptr_t address, bool fenced, const Here& here) {
    Told& told = by_address_[address];
    if (!told.empty()) {
        const auto own = std::find_if(recent_.begin(), recent_.end(), [&](const Recent& each) {
            return each.warp == here.warp && each.lane == here.lane && each.clock == here.clocks[here.lane];
        });
        if (own == recent_.end())
            recent_.push_back({here.warp, here.lane, here.clocks[here.lane], told});
        else
            join(own->told, told);
    }
    if (!fenced) return;
    join(told, all_);
    for (const Recent& each : recent_)
        if (follows(here, each)) join(told, each.told);
    Point point{here.epoch, {{here.warp, {}}}};
    std::copy(here.clocks, here.clocks + point.warps[0].second.size(), point.warps[0].second.begin());
    points_.push_back(std::move(point));
    told.resize(blocks_ + 1);
    told[here.block] = join(told[here.block], static_cast<uint32_t>(points_.size() - 1));
}

bool BetweenBlocks::ordered(Stamp earlier, const Here& here) const {
    const auto tells = [&](const Told& told) {
        return earlier.block() < told.size() && covers(told[earlier.block()], earlier);
    };
    return tells(all_) || std::any_of(recent_.begin(), recent_.end(),
                                      [&](const Recent& each) { return follows(here, each) && tells(each.told); });
}

// A point that tells what both do.
uint32_t BetweenBlocks::join(uint32_t a, uint32_t b) {
    if (a == b || b == 0) return a;
    if (a == 0) return b;
    if (points_[a].epoch != points_[b].epoch) return points_[a].epoch > points_[b].epoch ? a : b;
    const auto contains = [](const Point& all, const Point& some) {
        return std::all_of(some.warps.begin(), some.warps.end(), [&](const auto& one) {
            return std::any_of(all.warps.begin(), all.warps.end(), [&](const auto& each) {
                return each.first == one.first && std::equal(one.second.begin(), one.second.end(), each.second.begin(),
                                                             [](uint32_t x, uint32_t y) { return x <= y; });
            });
        });
    };
    if (contains(points_[a], points_[b])) return a;
    if (contains(points_[b], points_[a])) return b;
    Point both = points_[a];
    for (const auto& [warp, clocks] : points_[b].warps) {
        const auto own = std::find_if(both.warps.begin(), both.warps.end(),
                                      [warp = warp](const auto& each) { return each.first == warp; });
        if (own == both.warps.end())
            both.warps.emplace_back(warp, clocks);
        else
            for (size_t i = 0; i < clocks.size(); ++i) own->second[i] = std::max(own->second[i], clocks[i]);
    }
    points_.push_back(std::move(both));
    return static_cast<uint32_t>(points_.size() - 1);
}

void BetweenBlocks::join(Told& to, const Told& from) {
    if (to.size() < from.size()) to.resize(from.size());
    for (size_t i = 0; i < from.size(); ++i) to[i] = join(to[i], from[i]);
}

bool BetweenBlocks::covers(uint32_t point, Stamp stamp) const {
    if (point == 0) return false;
    const Point& of = points_[point];
    if (stamp.epoch() != of.epoch) return stamp.epoch() < of.epoch;
    return std::any_of(of.warps.begin(), of.warps.end(), [&](const auto& each) {
        return each.first == stamp.thread() / each.second.size() &&
               each.second[stamp.thread() % each.second.size()] >= stamp.clock();
    });
}

}  // namespace cuda_emulation
