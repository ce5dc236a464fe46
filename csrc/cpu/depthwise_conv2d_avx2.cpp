// The avx2 bodies of depthwise_conv2d.h are compiled from here.
