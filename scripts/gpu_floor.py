#!/usr/bin/env python3
"""Physical floors for CIFAR ResNet-(6n+2) training (He et al. 2015, widths 16/32/64, option-A shortcuts) on one H100.

Everything is counted op by op: FLOPs, elements read, elements written, kernels launched.
Change the constants below and re-run; no dependencies.   scripts/gpu_floor.py
scripts/gpu_check prints images_per_s() beside each measurement: a result above it means a fault in one of the two.
"""
HBM   = 3.0e12    # B/s, device-to-device copy counting read+write   (measured on one H100)
TC    = 800e12    # FLOP/s dense bf16 8192^3 matmul                  (measured on one H100)
FP32  = 60e12     # FLOP/s fp32 CUDA cores, ASSUMED (67 datasheet); scenario (a) has no tensor cores (TF32 off)
L2BW  = 5.5e12    # B/s L2, ASSUMED (public microbenchmarks say 5.5-7); measure it before relying on it
L2    = 50e6      # bytes
EAGER = 5e-6      # s of CPU time per launch, a usual figure; cuDNN and framework calls cost more
GRAPH = 2.5e-6    # s per dependent small kernel inside a CUDA graph (gap + ramp + tail), ASSUMED
NIMG  = 50_000

class Conv:        # one 3x3 conv (+ its BN); E = output elements/img, X = input elements/img
    def __init__(s, cin, cout, hin, stride, pos): s.cin, s.cout, s.hin, s.st, s.pos = cin, cout, hin, stride, pos
    @property
    def hout(s): return s.hin // s.st
    @property
    def E(s): return s.cout * s.hout**2
    @property
    def X(s): return s.cin * s.hin**2
    @property
    def flop(s): return 2 * 9 * s.cin * s.cout * s.hout**2
    @property
    def params(s): return 9 * s.cin * s.cout + 2 * s.cout

def net(depth):
    n = (depth - 2) // 6; L = [Conv(3, 16, 32, 1, 'stem')]; c, h = 16, 32
    for w in (16, 32, 64):
        for b in range(n):
            st = 2 if (b == 0 and w != 16) else 1
            L += [Conv(c, w, h, st, 'c1'), Conv(w, w, h // st, 1, 'c2')]; c, h = w, h // st
    return L

def flops(L):
    f = sum(l.flop for l in L); fc = 2 * 64 * 10
    return f + fc, sum(l.flop for l in L if l.pos != 'stem') + fc, f + fc      # fwd, dgrad, wgrad

# ---- element traffic per image: list of (name, read, write) --------------------------------------------------
def naive(L):      # (a) one kernel per op, nothing fused, single-pass statistics
    t = []
    for l in L:
        E, X = l.E, l.X
        t += [('conv', X, E), ('bn stats', E, 0), ('bn norm', E, E), ('relu', E, E)]
        if l.pos == 'c2': t += [('add', 2 * E, E)]
        t += [("relu'", 2 * E, E), ('bn bwd sums', 2 * E, 0), ('bn bwd dx', 2 * E, E), ('wgrad', E + X, 0)]
        if l.pos != 'stem': t += [('dgrad', E, X)]
        if l.pos == 'c1': t += [('grad add', 2 * X, X)]
    return t
def cudnn(L, passes):   # (b) conv | BN(+add)+ReLU(+bitmask) | dReLU+dBN(+fork) | dgrad(beta=1 adds the skip grad) | wgrad
    t = []              #     passes=1: BN kernel keeps the tensor on chip between statistics and normalise; 2: re-reads it
    for l in L:
        E, X = l.E, l.X; c2 = l.pos == 'c2'
        t += [('conv', X, E), ('bn+relu', passes * E + (E if c2 else 0), E + E / 16)]
        t += [('drelu+dbn', passes * 2 * E + E / 16, E + (E if c2 else 0)), ('wgrad', E + X, 0)]
        if l.pos != 'stem': t += [('dgrad', E + (X if l.pos == 'c1' else 0), X)]
    return t
def cudnn_graph(L):     # (b+) fp16-only cuDNN conv-BN engines: [SBR-]conv-genstats, add junction as its own kernel, dBN-apply
    t = []              #      materialised (dgrad/wgrad have no dBN prologue); each stats op has its own small reduce kernel
    for l in L:
        E, X = l.E, l.X
        t += [('SBR-conv-genstats', X, E), ('bn_stats', 0, 0), ('bn_finalize', 0, 0)]
        if l.pos != 'c1': t += [('scale-bias-add-relu', (2 if l.pos == 'c2' else 1) * E, E)]
        t += [('dbn_apply', 2 * E, E), ('SBR-wgrad', E + X, 0)]
        if l.pos != 'stem': t += [('dgrad-drelu-dbnw', E + X + (2 * X if l.pos == 'c1' else 0), X), ('dbn_stats', 0, 0)]
    return t
def fused(L, merged):   # (c) prologue = BN-apply(+add)+ReLU of the producer, epilogue = statistics; backward likewise
    t = []
    for l in L:
        E, X = l.E, l.X
        if l.pos == 'c1':   t += [('P-conv-S', 2 * X, E + X)]        # y_prev raw + skip -> also writes block input z
        else:               t += [('P-conv-S', X, E)]
        # backward: dY = A*g + B*y + C on the fly from (g, y): 2E.  dgrad writes g_prev = mask*dX, reads y_prev for mask+xhat.
        if l.pos == 'stem': t += [('wgrad', 2 * E + X, 0)]
        else:
            skip = (2 * X) if l.pos == 'c1' else 0                   # + skip gradient and z (mask) at the block input
            if merged: t += [('dgrad+wgrad', 2 * E + X + skip, X)]
            else:      t += [('dgrad', 2 * E + X + skip, X), ('wgrad', 2 * E + X, 0)]
    return t

def fixed(kind):   # per-step kernels that are not conv/BN: augment+gather, shortcuts, head, optimiser
    return {'a': 3 + 4 + 8, 'b': 1 + 4 + 6 + 1, 'c': 1 + 0 + 3 + 1}[kind]

def images_per_s(depth, batch, precision):
    """What Linnet's launches could reach: cuDNN's convolutions, batch norm in two passes, one graph a step (scenario b2)."""
    L = net(depth); traffic = cudnn(L, 2); size = 4 if precision == 'f32' else 2
    per_image = sum(r + w for _, r, w in traffic) * size
    largest_pair = 2 * 16 * 32 * 32 * batch * size              # what one kernel hands to the next
    bandwidth = L2BW if largest_pair < L2 else HBM
    seconds = max(per_image * batch / bandwidth, sum(flops(L)) * batch / (FP32 if precision == 'f32' else TC))
    return batch / (seconds + (len(traffic) + fixed('b')) * GRAPH)

def main():
    print('FLOPs and parameters (multiply-add = 2 FLOP; conv+fc only)')
    print(f"{'net':10}{'convs':>6}{'params':>10}{'fwd MF/img':>12}{'dgrad':>8}{'wgrad':>8}{'train':>8}{'TF/epoch':>10}"
          f"{'s @800TF':>10}{'s @derated':>11}")
    for d in (20, 56, 110):
        L = net(d); f, dg, wg = flops(L); p = sum(l.params for l in L) + 650
        tot = (f + dg + wg) * NIMG
        # derated: Cout=16 caps near 50% of peak (A operand re-read from smem every tap), Cout>=32 near 62% (mma.sync): inference
        der = sum(l.flop * (2 if l.pos == 'stem' else 3) / (0.5 if l.cout == 16 else 0.62) for l in L) * NIMG / TC
        print(f"ResNet-{d:<3}{len(L):>6}{p:>10,}{f/1e6:>12.1f}{dg/1e6:>8.1f}{wg/1e6:>8.1f}{(f+dg+wg)/1e6:>8.1f}"
              f"{tot/1e12:>10.1f}{tot/TC:>10.3f}{der:>11.3f}")
    print('\nActivation traffic, no cache reuse (HBM 3.0 TB/s), per image and per 50k-image epoch')
    scen = [('a  fp32 unfused',            'a', 4, lambda L: naive(L)),
            ('b2 bf16 cuDNN BN 2-pass',    'b', 2, lambda L: cudnn(L, 2)),
            ('b1 bf16 cuDNN BN 1-pass',    'b', 2, lambda L: cudnn(L, 1)),
            ('b+ fp16 cuDNN conv-BN graph', 'b', 2, lambda L: cudnn_graph(L)),
            ('c  bf16 fully fused',        'c', 2, lambda L: fused(L, False)),
            ("c' bf16 + dgrad/wgrad merged", 'c', 2, lambda L: fused(L, True))]
    rows = {}
    print(f"{'scenario':30}{'net':>11}{'MB/img':>8}{'s/epoch':>9}{'img/s':>10}{'@L2 BW':>8}{'FLOP/B':>8}{'kernels':>9}")
    for nm, k, s, fn in scen:
        for d in (20, 56, 110):
            L = net(d); t = fn(L); b = sum(r + w for _, r, w in t) * s
            nk = len(t) + fixed(k)
            if k == 'a': nk += 4 * (3 * len(L) + 2)          # per-tensor optimiser: zero, decay, momentum, update
            rows[nm, d] = (b, nk); fl = sum(flops(L))
            print(f"{nm:30}{'ResNet-'+str(d):>11}{b/1e6:>8.2f}{b*NIMG/HBM:>9.3f}{HBM/b:>10,.0f}{b*NIMG/L2BW:>8.3f}"
                  f"{fl/b:>8.0f}{nk:>9}")
    print('\nLaunch/latency bound, s/epoch: eager = kernels x 5 us CPU; graph = kernels x 2.5 us GPU (assumed dependent-kernel cost)')
    print(f"{'scenario':30}{'net':>11}{'B128 eager':>12}{'B128 graph':>12}{'B1024 eager':>12}{'B1024 graph':>12}")
    for nm, k, s, fn in scen:
        for d in (20, 56, 110):
            b, nk = rows[nm, d]; st = lambda B: -(-NIMG // B)
            print(f"{nm:30}{'ResNet-'+str(d):>11}" + ''.join(f"{nk*c*st(B):>12.3f}" for B in (128, 1024) for c in (EAGER, GRAPH)))
    print('\nModel, s/epoch (images/s) = max(bytes/BW, math) + kernels x 2.5 us graph latency (kernels at 100% of bandwidth: optimistic)')
    print(f"{'scenario':30}{'net':>11}{'B=128 (HBM)':>18}{'B=128 (L2)':>18}{'B=1024 (HBM)':>18}")
    for nm, k, s, fn in scen:
        for d in (20, 56, 110):
            b, nk = rows[nm, d]; fl = sum(flops(net(d))) * NIMG / (FP32 if k == 'a' else TC)
            o = ''
            for B, bw in ((128, HBM), (128, L2BW), (1024, HBM)):
                t = max(b * NIMG / bw, fl) + nk * GRAPH * -(-NIMG // B)
                o += f"{t:>8.3f} ({NIMG/t/1e3:>5.0f}k)"
            print(f"{nm:30}{'ResNet-'+str(d):>11}{o}")
    print('\nBN ordering floor at B=128: 2 grid-wide reductions per conv (fwd stats, bwd sums), 2 us each (ASSUMED):',
          ', '.join(f"ResNet-{d} {2*len(net(d))*2e-6*391:.3f} s/epoch" for d in (20, 56, 110)))
    print('\nFootprint kept for backward (bf16: raw conv output + block outputs) and largest single tensor, vs 50 MB L2')
    for d in (20, 56, 110):
        L = net(d); e = sum(l.E for l in L) + sum(l.E for l in L if l.pos in ('c2', 'stem'))
        for B in (128, 1024):
            print(f"ResNet-{d:<4} B={B:<5} saved {e*2*B/1e6:8.1f} MB   largest tensor {16384*2*B/1e6:6.1f} MB   "
                  f"{'fits in L2' if e*2*B < L2 else 'does not fit'}")
if __name__ == '__main__': main()
